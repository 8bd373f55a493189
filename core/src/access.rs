//! Permissions: pure functions of a principal. Nothing here reads a table or a password.
//!
//! Invariant: rows of USER tables need no permission check. For every role, a scan sees only the scope of its
//! [`Principal::user_id`], so no statement can name another user's rows.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::UserId;

/// A user's role. Each role includes the rights of the roles before it.
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
    /// Parses a role's SQL name, ignoring case. Fails with 22023 for any other name.
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

    /// Returns the role's name in SQL and in system tables.
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

/// The lowest roles that may read and write a SHARED table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLevel {
    /// Every authenticated user reads; `Service` and above write.
    Public,
    /// `Service` and above read and write.
    #[default]
    Private,
    /// Same rights as `Private`; a separate level reserved for grants.
    Restricted,
    /// Only `Dba` and `System` read and write.
    Dba,
}

impl AccessLevel {
    /// Parses a level's SQL name, ignoring case. Fails with 22023 for any other name.
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

    /// Returns the level's name in SQL and in system tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Restricted => "restricted",
            Self::Dba => "dba",
        }
    }

    /// Returns the lowest role that may read.
    pub fn min_reader(self) -> Role {
        match self {
            Self::Public => Role::User,
            Self::Private | Self::Restricted => Role::Service,
            Self::Dba => Role::Dba,
        }
    }

    /// Returns the lowest role that may write.
    pub fn min_writer(self) -> Role {
        match self {
            Self::Public | Self::Private | Self::Restricted => Role::Service,
            Self::Dba => Role::Dba,
        }
    }
}

/// An authenticated user. The layer that authenticates creates it; it is passed explicitly and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The user whose rows are visible.
    pub user_id: UserId,
    /// What `CURRENT_USER()` returns.
    pub username: Arc<str>,
    /// Decides what the user may do.
    pub role: Role,
}

impl Principal {
    /// Fails with 42501 if the role is below `lowest`. `action` completes "permission denied to …".
    pub fn require(&self, lowest: Role, action: impl fmt::Display) -> Result<(), Error> {
        if self.role >= lowest {
            return Ok(());
        }
        Err(Error::permission_denied(format!("permission denied to {action}"))
            .hint(format!("it needs the role {lowest}; \"{}\" has the role {}", self.username, self.role)))
    }

    /// Returns whether the principal may read a SHARED table of this level.
    pub fn may_read_shared(&self, level: AccessLevel) -> bool {
        self.role >= level.min_reader()
    }

    /// Returns whether the principal may write a SHARED table of this level.
    pub fn may_write_shared(&self, level: AccessLevel) -> bool {
        self.role >= level.min_writer()
    }

    /// Returns whether the principal may read all tables of namespace `system`. Every user may read some.
    pub fn may_read_system(&self) -> bool {
        self.role >= Role::Dba
    }

    /// Returns whether the principal may create USER and STREAM tables. [`Principal::may_create_shared`]
    /// covers SHARED ones.
    pub fn may_create_table(&self) -> bool {
        true
    }

    /// Returns whether the principal may create SHARED tables.
    pub fn may_create_shared(&self) -> bool {
        self.role >= Role::Service
    }

    /// Returns whether the principal may drop tables and administer namespaces and users.
    pub fn may_administer(&self) -> bool {
        self.role >= Role::Dba
    }
}
