//! Who may do what: pure functions over a principal. Nothing here reads a table or a password.
//!
//! Invariant: rows of USER tables need no check at all. Whose rows are visible comes from [`Principal::user_id`] through the
//! scope of a scan, for every role, so no statement can name another user's rows.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::UserId;

/// A user's role. Each may do what the one before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns rows in USER tables, reads public SHARED tables.
    User,
    /// An application's backend: reads and writes SHARED tables.
    Service,
    /// Administers namespaces, tables and users.
    Dba,
    /// The operator.
    System,
}

impl Role {
    /// The role of a name as SQL spells it, in any case.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "user" => Ok(Self::User),
            "service" => Ok(Self::Service),
            "dba" => Ok(Self::Dba),
            "system" => Ok(Self::System),
            _ => Err(Error::invalid(format!("role \"{text}\" does not exist"))
                .hint("roles are user, service, dba and system")),
        }
    }

    /// The role's name in SQL and in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "service",
            Self::Dba => "dba",
            Self::System => "system",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who may read a SHARED table besides the roles that always may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLevel {
    /// Every authenticated user reads; services and above write.
    Public,
    /// Services and above read and write.
    #[default]
    Private,
    /// As private; kept apart for grants.
    Restricted,
    /// Only dba and system read and write.
    Dba,
}

impl AccessLevel {
    /// The level of a name as SQL spells it, in any case.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "public" => Ok(Self::Public),
            "private" => Ok(Self::Private),
            "restricted" => Ok(Self::Restricted),
            "dba" => Ok(Self::Dba),
            _ => Err(Error::invalid(format!("access level \"{text}\" does not exist"))
                .hint("access levels are public, private, restricted and dba")),
        }
    }

    /// The level's name in SQL and in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Restricted => "restricted",
            Self::Dba => "dba",
        }
    }

    /// The lowest role that may read.
    pub fn reader(self) -> Role {
        match self {
            Self::Public => Role::User,
            Self::Private | Self::Restricted => Role::Service,
            Self::Dba => Role::Dba,
        }
    }

    /// The lowest role that may write.
    pub fn writer(self) -> Role {
        match self {
            Self::Public | Self::Private | Self::Restricted => Role::Service,
            Self::Dba => Role::Dba,
        }
    }
}

/// An authenticated user. Made by the layer that authenticated, passed down explicitly, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Whose rows are visible.
    pub user_id: UserId,
    /// `CURRENT_USER()`.
    pub username: Arc<str>,
    /// What may be done.
    pub role: Role,
}

impl Principal {
    /// Fails with 42501 unless the principal's role is at least `lowest`; `action` completes "permission denied to …".
    pub fn require(&self, lowest: Role, action: impl fmt::Display) -> Result<(), Error> {
        if self.role >= lowest {
            return Ok(());
        }
        Err(Error::permission_denied(format!("permission denied to {action}"))
            .hint(format!("it needs the role {lowest}; \"{}\" has the role {}", self.username, self.role)))
    }

    /// Whether the principal may read a SHARED table of this level.
    pub fn may_read_shared(&self, level: AccessLevel) -> bool {
        self.role >= level.reader()
    }

    /// Whether the principal may write a SHARED table of this level.
    pub fn may_write_shared(&self, level: AccessLevel) -> bool {
        self.role >= level.writer()
    }

    /// Whether the principal may read the tables of namespace `system`.
    pub fn may_read_system(&self) -> bool {
        self.role >= Role::Dba
    }

    /// Whether the principal may create USER and STREAM tables; see [`Principal::may_create_shared`] for SHARED ones.
    pub fn may_create_table(&self) -> bool {
        true
    }

    /// Whether the principal may create SHARED tables.
    pub fn may_create_shared(&self) -> bool {
        self.role >= Role::Service
    }

    /// Whether the principal may drop tables and administer namespaces and users.
    pub fn may_administer(&self) -> bool {
        self.role >= Role::Dba
    }
}
