//! Settings of the server: their sources, and the checks before anything is opened.
//!
//! Every setting has one name. Flag `--set name=value` (or the setting's own flag) overrides environment
//! `KALAMDB_NAME`, which overrides `name = value` in the TOML file, which overrides the default. Invariant:
//! an unknown name is an error, never ignored.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use kalamdb_core::Config;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Prefix of KalamDB's environment variables.
const ENV_PREFIX: &str = "KALAMDB_";

/// Core settings that are not serialized with the others because they are secret.
const SECRET_KEYS: [&str; 1] = ["root_password"];

/// Variables with our prefix that are for other programs: the command line's clients, the demo and the tests.
const FOREIGN_VARIABLES: [&str; 13] = [
    "bin",
    "cases",
    "config",
    "crash_cycles",
    "host",
    "password",
    "port",
    "power_losses",
    "queries",
    "seed",
    "tls_ca",
    "url",
    "user",
];
/// Prefixes of the variables that Kubernetes sets for a service called "kalamdb".
const PLATFORM_PREFIXES: [&str; 2] = ["port_", "service_"];

/// The least that is read of a connection before a login: an HTTP/2 frame, and headers.
const ANONYMOUS_READ_BYTES_MIN: usize = 40 << 10;

/// Everything `kalamdb serve` needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Settings of the database itself.
    pub core: Config,
    /// Address of Flight SQL and live queries. Default 127.0.0.1:8815; port 0 picks one.
    pub listen: SocketAddr,
    /// Address of health and metrics over HTTP, `None` when off. Default 127.0.0.1:8816.
    pub http_listen: Option<SocketAddr>,
    /// Allows plain text on an address that other machines can reach. Default false.
    pub insecure: bool,
    /// Certificate and key of the gRPC port; `None` speaks plain text.
    pub tls: Option<TlsConfig>,
    /// Whether gRPC reflection is served. Default true.
    pub reflection: bool,
    /// The largest message a client may send, in bytes. Default 64 MiB.
    pub message_bytes_max: usize,
    /// Maximum bytes of rows and parameters that the server holds for all clients together. Default 2 GiB.
    pub inbound_bytes_max: usize,
    /// The most connections of one IPv4 address or IPv6 /64. Default 0: no limit.
    pub connections_per_address_max: usize,
    /// The most connections with a login of one user. Default 1,000.
    pub connections_per_user_max: usize,
    /// The most connections without a login that one IPv4 address or IPv6 /48 keeps when there are too many
    /// in all. Default 256.
    pub anonymous_per_address_max: usize,
    /// How many bytes the server holds of what a connection sends before a login. Default 48 KiB.
    pub anonymous_read_bytes_max: usize,
    /// The most calls in flight on a connection before a login, without those that wait for it. Default 8.
    pub anonymous_calls_per_connection_max: usize,
    /// The most logins whose passwords wait to be checked. Default 4,096.
    pub logins_waiting_max: usize,
    /// How long open calls may take to end after SIGTERM, in milliseconds. Default 8,000; at most 10,000 are
    /// used.
    pub drain_ms: u64,
    /// Filter of log lines in `tracing`'s syntax, e.g. `info` or `kalamdb_core=debug`. Default `info`.
    pub log_level: String,
    /// Format of log lines. Default text.
    pub log_format: LogFormat,
}

/// Paths of the certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate, followed by its issuers' certificates.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An invalid setting, described in one sentence.
#[derive(Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl From<String> for ConfigError {
    fn from(message: String) -> Self {
        Self(message)
    }
}

/// The server's own settings, as in the TOML file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServerSettings {
    listen: String,
    http_listen: String,
    insecure: bool,
    tls_cert: String,
    tls_key: String,
    reflection: bool,
    message_bytes_max: usize,
    inbound_bytes_max: usize,
    connections_per_address_max: usize,
    connections_per_user_max: usize,
    anonymous_per_address_max: usize,
    anonymous_read_bytes_max: usize,
    anonymous_calls_per_connection_max: usize,
    logins_waiting_max: usize,
    drain_ms: u64,
    log_level: String,
    log_format: LogFormat,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8815".to_owned(),
            http_listen: "127.0.0.1:8816".to_owned(),
            insecure: false,
            tls_cert: String::new(),
            tls_key: String::new(),
            reflection: true,
            message_bytes_max: 64 << 20,
            inbound_bytes_max: 2 << 30,
            connections_per_address_max: 0,
            connections_per_user_max: 1_000,
            anonymous_per_address_max: 256,
            anonymous_read_bytes_max: 48 << 10,
            anonymous_calls_per_connection_max: 8,
            logins_waiting_max: 4_096,
            drain_ms: 8_000,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl ServerSettings {
    fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("connections_per_user_max", self.connections_per_user_max),
            ("anonymous_per_address_max", self.anonymous_per_address_max),
            ("anonymous_calls_per_connection_max", self.anonymous_calls_per_connection_max),
            ("logins_waiting_max", self.logins_waiting_max),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError(format!("setting \"{name}\" must be greater than 0")));
        }
        // An encrypted handshake and the headers of a login must fit.
        if self.anonymous_read_bytes_max < ANONYMOUS_READ_BYTES_MIN {
            return Err(ConfigError(format!(
                "setting \"anonymous_read_bytes_max\" must be at least {ANONYMOUS_READ_BYTES_MIN}"
            )));
        }
        Ok(())
    }
}

/// The sources of settings, weakest first: a file, the environment, flags.
#[derive(Debug, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// All environment variables; those without our prefix are skipped.
    pub env: Vec<(String, String)>,
    /// Settings given as flags.
    pub flags: Vec<(String, String)>,
}

impl ServerConfig {
    /// Reads, merges and checks all settings.
    ///
    /// # Errors
    /// Names the first setting that is unknown, has the wrong type or is invalid, and where it was set.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let known = known_settings()?;
        let mut table = match &sources.file {
            Some(path) => read_file(path)?,
            None => Table::new(),
        };
        if let Some(unknown) = table.keys().find(|name| !known.contains_key(*name)) {
            return Err(ConfigError(format!(
                "setting \"{unknown}\" in the configuration file does not exist"
            )));
        }
        for (variable, text) in &sources.env {
            let Some(name) = variable.strip_prefix(ENV_PREFIX).map(str::to_ascii_lowercase) else { continue };
            if is_foreign(&name) {
                continue;
            }
            let example = known.get(&name).ok_or_else(|| {
                format!(
                    "variable {variable}: setting \"{name}\" does not exist; unset it, or correct its name"
                )
            })?;
            table.insert(
                name,
                parse_like(example, text).map_err(|why| format!("variable {variable}: {why}"))?,
            );
        }
        for (name, text) in &sources.flags {
            let example = known.get(name).ok_or_else(|| format!("setting \"{name}\" does not exist"))?;
            table.insert(
                name.clone(),
                parse_like(example, text).map_err(|why| format!("setting \"{name}\": {why}"))?,
            );
        }
        Self::from_table(table)
    }

    fn from_table(table: Table) -> Result<Self, ConfigError> {
        let server_names = server_settings()?;
        let (server, core): (Table, Table) =
            table.into_iter().partition(|(name, _)| server_names.contains_key(name));
        let core: Config = typed(core)?;
        let server: ServerSettings = typed(server)?;
        core.validate().map_err(|error| error.to_string())?;
        server.validate()?;
        let config = Self {
            listen: resolve("listen", &server.listen)?,
            http_listen: match server.http_listen.as_str() {
                "off" => None,
                text => Some(resolve("http_listen", text)?),
            },
            insecure: server.insecure,
            tls: match (server.tls_cert.as_str(), server.tls_key.as_str()) {
                ("", "") => None,
                ("", _) | (_, "") => {
                    let message = "settings \"tls_cert\" and \"tls_key\" must be set together";
                    return Err(ConfigError(message.to_owned()));
                }
                (cert, key) => Some(TlsConfig { cert: cert.into(), key: key.into() }),
            },
            reflection: server.reflection,
            message_bytes_max: server.message_bytes_max,
            inbound_bytes_max: server.inbound_bytes_max,
            connections_per_address_max: server.connections_per_address_max,
            connections_per_user_max: server.connections_per_user_max,
            anonymous_per_address_max: server.anonymous_per_address_max,
            anonymous_read_bytes_max: server.anonymous_read_bytes_max,
            anonymous_calls_per_connection_max: server.anonymous_calls_per_connection_max,
            logins_waiting_max: server.logins_waiting_max,
            drain_ms: server.drain_ms.min(10_000),
            log_level: server.log_level,
            log_format: server.log_format,
            core,
        };
        config.refuse_open_plain_text()?;
        Ok(config)
    }

    /// Refuses plain text over a network unless the user allows it explicitly: it exposes passwords and rows.
    fn refuse_open_plain_text(&self) -> Result<(), ConfigError> {
        if self.insecure {
            return Ok(());
        }
        let open = match (&self.tls, self.http_listen) {
            (None, _) if !self.listen.ip().is_loopback() => Some(("listen", self.listen)),
            (_, Some(http)) if !http.ip().is_loopback() => Some(("http_listen", http)),
            _ => None,
        };
        match open {
            None => Ok(()),
            Some((name, address)) => Err(ConfigError(format!(
                "{name} address {address} can be reached by other machines without TLS; use a loopback \
                 address, set --tls-cert and --tls-key, or allow plain text with --insecure"
            ))),
        }
    }
}

/// Whether a variable with our prefix, given without it, is not a setting of the server.
fn is_foreign(name: &str) -> bool {
    FOREIGN_VARIABLES.contains(&name) || PLATFORM_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn server_settings() -> Result<Table, ConfigError> {
    Table::try_from(ServerSettings::default()).map_err(|error| ConfigError(error.to_string()))
}

/// Returns every setting with its default, whose type tells how to parse a flag or variable.
fn known_settings() -> Result<Table, ConfigError> {
    let mut known = Table::try_from(Config::default()).map_err(|error| ConfigError(error.to_string()))?;
    known.extend(server_settings()?);
    known.extend(SECRET_KEYS.map(|name| (name.to_owned(), Value::String(String::new()))));
    Ok(known)
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read the configuration file \"{}\": {error}", path.display()))?;
    text.parse().map_err(|error| ConfigError(format!("configuration file \"{}\": {error}", path.display())))
}

fn parse_like(example: &Value, text: &str) -> Result<Value, String> {
    match example {
        Value::Integer(_) => text
            .parse::<i64>()
            .ok()
            .filter(|number| *number >= 0)
            .map(Value::Integer)
            .ok_or_else(|| format!("\"{text}\" is not a whole number")),
        Value::Boolean(_) => match text {
            "true" | "1" => Ok(Value::Boolean(true)),
            "false" | "0" => Ok(Value::Boolean(false)),
            _ => Err(format!("\"{text}\" is neither true nor false")),
        },
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn resolve(name: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).ok_or_else(|| {
        ConfigError(format!("setting \"{name}\": \"{text}\" is not an address; write HOST:PORT"))
    })
}

/// Reads settings into `T`. Adds the setting's name to type errors, which the deserializer does not know.
fn typed<T: DeserializeOwned>(table: Table) -> Result<T, ConfigError> {
    let refused = match table.clone().try_into() {
        Ok(settings) => return Ok(settings),
        Err(error) => one_line(&error),
    };
    // Every setting has a default, so the faulty one also fails alone.
    for (name, value) in table {
        let alone = Table::from_iter([(name.clone(), value)]);
        if let Err(error) = alone.try_into::<T>() {
            return Err(ConfigError(format!("setting \"{name}\": {}", one_line(&error))));
        }
    }
    Err(ConfigError(refused))
}

/// TOML's errors mark a place in the file over several lines; a single value has no such place.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn load(
        file: Option<&str>,
        env: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<ServerConfig, ConfigError> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("kalamdb.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("write the file");
        }
        ServerConfig::load(&Sources { file: file.map(|_| path), env: pairs(env), flags: pairs(flags) })
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = load(None, &[], &[]).expect("defaults");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8815");
        assert_eq!(config.http_listen.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:8816"));
        assert_eq!(config.core.node_id, "node-1");
        assert_eq!(config.core.data_dir.as_deref(), Some(Path::new("./kalamdb-data")));
    }

    #[test]
    fn a_flag_overrides_the_environment_which_overrides_the_file() {
        let file = Some("node_id = \"file\"\nrow_bytes_max = 1\nlisten = \"127.0.0.1:1\"\n");
        let env = [
            ("KALAMDB_NODE_ID", "env"),
            ("KALAMDB_ROW_BYTES_MAX", "2"),
            ("KALAMDB_PASSWORD", "x"),
            ("HOME", "/"),
        ];
        let config = load(file, &env, &[("node_id", "flag")]).expect("settings");
        assert_eq!(config.core.node_id, "flag");
        assert_eq!(config.core.row_bytes_max, 2);
        assert_eq!(config.listen.port(), 1);
    }

    #[test]
    fn no_setting_is_taken_for_a_foreign_variable() {
        let known = known_settings().expect("settings");
        assert_eq!(known.keys().find(|name| is_foreign(name)), None);
        let others =
            [("KALAMDB_PASSWORD", "x"), ("KALAMDB_SEED", "1"), ("KALAMDB_PORT", "tcp://10.0.0.1:8815")];
        load(None, &others, &[("node_id", "a")]).expect("settings");
        load(None, &[("KALAMDB_SERVICE_HOST", "10.0.0.1"), ("KALAMDB_PORT_8815_TCP_PROTO", "tcp")], &[])
            .expect("settings");
    }

    #[test]
    fn what_the_projects_own_programs_set_keeps_no_server_from_starting() {
        let programs = [
            include_str!("../../Makefile"),
            include_str!("../../.ci/run"),
            include_str!("../../docs/testing.md"),
            include_str!("../demo.sh"),
        ];
        let known = known_settings().expect("settings");
        let refused = programs
            .iter()
            .flat_map(|text| text.split(ENV_PREFIX).skip(1))
            .map(|rest| {
                rest.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).next().unwrap_or_default()
            })
            .map(str::to_ascii_lowercase)
            .find(|name| !known.contains_key(name.as_str()) && !is_foreign(name));
        assert_eq!(refused, None);
    }

    #[test]
    fn the_root_password_comes_from_the_environment() {
        let config = load(None, &[("KALAMDB_ROOT_PASSWORD", "correct horse")], &[]).expect("settings");
        assert_eq!(config.core.root_password.as_deref(), Some("correct horse"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let check = |file: Option<&str>, env: &[(&str, &str)], flags: &[(&str, &str)], expected: &str| {
            let message = load(file, env, flags).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        };
        check(Some("lisen = \"x\""), &[], &[], "setting \"lisen\"");
        check(Some("listen = \"x\""), &[], &[], "\"x\" is not an address");
        check(Some("node_id = \"a\"\nrow_bytes_max = \"x\""), &[], &[], "setting \"row_bytes_max\"");
        check(Some("row_bytes_max = -1"), &[], &[], "setting \"row_bytes_max\"");
        check(Some("= 1"), &[], &[], "configuration file");
        check(None, &[("KALAMDB_ROW_BYTES_MAX", "-1")], &[], "variable KALAMDB_ROW_BYTES_MAX");
        check(None, &[("KALAMDB_INSECURE", "maybe")], &[], "neither true nor false");
        check(None, &[("KALAMDB_ROW_BYTE_MAX", "1")], &[], "variable KALAMDB_ROW_BYTE_MAX");
        check(None, &[], &[("node_id", "a b")], "node id \"a b\" is not valid");
        check(None, &[], &[("nope", "1")], "setting \"nope\" does not exist");
        check(None, &[], &[("listen", "0.0.0.0:8815")], "--insecure");
        check(None, &[], &[("http_listen", "0.0.0.0:8815")], "--insecure");
        check(None, &[], &[("tls_cert", "a.pem")], "must be set together");
        check(
            None,
            &[],
            &[("connections_per_user_max", "0")],
            "\"connections_per_user_max\" must be greater",
        );
        check(None, &[], &[("anonymous_read_bytes_max", "100")], "must be at least 40960");
        check(None, &[], &[("log_format", "xml")], "setting \"log_format\": unknown variant `xml`");
    }

    #[test]
    fn an_open_address_needs_tls_or_a_word() {
        assert!(load(None, &[], &[("listen", "0.0.0.0:0"), ("insecure", "true")]).is_ok());
        assert!(load(None, &[], &[("listen", "0.0.0.0:0"), ("tls_cert", "c"), ("tls_key", "k")]).is_ok());
    }

    #[test]
    fn http_can_be_off() {
        assert_eq!(load(None, &[], &[("http_listen", "off")]).expect("settings").http_listen, None);
    }
}
