//! The one error type that reaches an operator, and the one place that says what each kind of error means.
//!
//! Every message is one line that ends in what to do. [`Kind::policy`] and [`Kind::exit_code`] are the only places
//! where a kind is turned into behaviour; `flagpost check` and `flagpost run` share them.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as the daemon's behaviour depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration or the command line is wrong: nothing can be tried until somebody edits it.
    Config,
    /// The database answered and refuses: wrong password, unknown database, missing privilege, `wal_level`,
    /// a missing table or column, a missing publication.
    DatabaseRefuses,
    /// The database cannot be reached or the connection broke: trying again later may help.
    DatabaseUnreachable,
    /// The replication slot is being read by another process right now.
    SlotInUse,
    /// The slot is gone, was invalidated, or was moved on by somebody else: changes are lost for good.
    SlotLost,
    /// The ledger belongs to another database or cannot continue from where it is.
    LedgerMismatch,
    /// The ledger file cannot be read or written.
    LedgerIo,
    /// The ledger's disk is full.
    LedgerFull,
    /// Everything else: a bug, or a message from the server that makes no sense.
    Internal,
}

/// What mends a ledger whose source has lost changes: the end of such an error's message.
pub const RECOVER: &str = "run \"flagpost recover\", which sends receivers what was missed, or begin anew without it with \"flagpost setup \
                           --resnapshot\"";

/// What the daemon does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Wait (backoff) and connect again; nothing was confirmed that is not durable.
    Retry,
    /// Stop the process with [`Kind::exit_code`].
    Stop,
}

impl Kind {
    /// Whether the running daemon tries again or stops. At start, the commands stop on every kind.
    pub fn policy(self) -> Policy {
        match self {
            Kind::DatabaseUnreachable | Kind::SlotInUse => Policy::Retry,
            Kind::Config
            | Kind::DatabaseRefuses
            | Kind::SlotLost
            | Kind::LedgerMismatch
            | Kind::LedgerIo
            | Kind::LedgerFull
            | Kind::Internal => Policy::Stop,
        }
    }

    /// The process exit code of the contract: 1 failed, 2 usage or configuration, 3 the database refuses or lacks
    /// something, 4 needs an operator.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::LedgerIo | Kind::LedgerFull | Kind::Internal => 1,
            Kind::Config => 2,
            Kind::DatabaseRefuses | Kind::DatabaseUnreachable | Kind::SlotInUse => 3,
            Kind::SlotLost | Kind::LedgerMismatch => 4,
        }
    }
}

/// An error with its kind and a one-line message that ends in what to do.
///
/// The message never holds a secret: URLs are redacted before they get here.
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a message for the operator.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// A configuration error (exit code 2).
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// Something that must not happen (exit code 1).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The HTTP client cannot be made. What it is made of has been checked by then, so the machine is what is left.
    pub fn no_http_client(why: impl std::fmt::Display) -> Self {
        Self::config(format!(
            "the HTTP client cannot be made: {why}: install the issuers of certificates (Debian: apt-get install ca-certificates), or \
             name a PEM file of them in the environment's SSL_CERT_FILE"
        ))
    }

    /// Keeps the cause for `{:?}` and `source()`; the message stays what the operator reads.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
