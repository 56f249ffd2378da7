//! What an operator can observe: each fact is one struct, which writes the log line and moves the metric.
//!
//! So a line and its figure cannot disagree, the fields have the same names in every format (`event_id`, `endpoint_id`,
//! `organisation_id`, `environment_id`, `feature`, `attempt`, `http_status`, `latency_ms`, `lsn`, `xid`, `lag_bytes`), and [`ALL`]
//! is the list of everything that can stand in the log, with what to do about it: `docs/messages.md` is checked against it.
//!
//! Vocabulary: it knows numbers and texts, and no stage. Secrets and URLs with what is secret in them are given to no fact.

mod meters;
mod table;
pub mod trace;

pub use meters::{Meters, meters};
pub use table::*;
pub use trace::Span;

/// How grave a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks into flagpost itself.
    Debug,
    /// As it should be.
    Info,
    /// Not as it should be; flagpost goes on.
    Warn,
    /// Something does not happen that should.
    Error,
}

impl Level {
    /// As it stands in a line of text.
    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// A kind of fact: what is the same in all of its lines.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// The struct's name.
    pub name: &'static str,
    /// How grave it is.
    pub level: Level,
    /// The line's text.
    pub text: &'static str,
    /// The fields that it may have; those without a value are left out.
    pub fields: &'static [&'static str],
    /// What an operator does.
    pub mend: &'static str,
}

/// Makes a struct of each fact, its `tell`, and [`ALL`].
///
/// `level Name { field: type, … } "text" do "what an operator does" [moves |fact, meters| …];`
macro_rules! facts {
    ($(
        $level:ident $name:ident { $($field:ident: $type:ty),* $(,)? } $text:literal
        do $mend:literal $(moves |$fact:ident, $meters:ident| $move:expr)?;
    )*) => {
        $(
            #[doc = concat!("“", $text, "”")]
            #[derive(Debug, Clone)]
            pub struct $name {
                $(#[doc = concat!("`", stringify!($field), "`")] pub $field: $type,)*
            }

            impl $name {
                /// What is the same in all lines of this fact.
                pub const MESSAGE: Message = Message {
                    name: stringify!($name),
                    level: level!($level),
                    text: $text,
                    fields: &[$(stringify!($field)),*],
                    mend: $mend,
                };

                /// Writes the line and moves the metric.
                pub fn tell(&self) {
                    tracing::$level!($($field = self.$field,)* $text);
                    $(
                        let moves: fn(&Self, &$crate::fact::Meters) = |$fact, $meters| $move;
                        moves(self, $crate::fact::meters());
                    )?
                }
            }
        )*

        /// Every line that can stand in the log.
        pub const ALL: &[Message] = &[$($name::MESSAGE),*];
    };
}

macro_rules! level {
    (debug) => {
        $crate::fact::Level::Debug
    };
    (info) => {
        $crate::fact::Level::Info
    };
    (warn) => {
        $crate::fact::Level::Warn
    };
    (error) => {
        $crate::fact::Level::Error
    };
}

use {facts, level};
