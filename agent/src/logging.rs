//! Where the agent's log goes and what it looks like.
//!
//! Names of interfaces and the like are chosen by others: nothing that is logged may forge a line
//! or reach the terminal of whoever reads it as a control sequence.

use std::fmt::{self, Debug, Write};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use thiserror::Error;
use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;

use crate::diagnostic::is_deceptive;
use crate::json::Plain;

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// The journal if standard error is connected to it, else text.
    #[default]
    Auto,
    /// Lines for people, on standard error.
    Text,
    /// A JSON object a line, on standard error.
    Json,
    /// The journal's own protocol, with every field for itself.
    Journald,
}

/// How much to log and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The least important level that is logged.
    pub level: LevelFilter,
    /// The form.
    pub format: Format,
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The journal's socket is not there.
    #[error("cannot connect to the journal")]
    Journal(#[source] io::Error),
    /// Something else set a log up before.
    #[error("a log is set up already")]
    Installed(#[source] SetGlobalDefaultError),
}

/// Sets up the log of the whole process.
///
/// # Errors
/// [`LoggingError::Journal`] when the journal was asked for and does not answer,
/// [`LoggingError::Installed`] on the second call.
pub fn install(settings: Settings) -> Result<(), LoggingError> {
    let installed = match settings.format {
        Format::Auto if stderr_is_journal() => return to_journal(settings.level),
        Format::Journald => return to_journal(settings.level),
        Format::Auto | Format::Text => {
            tracing::subscriber::set_global_default(text(settings.level, io::stderr))
        }
        Format::Json => tracing::subscriber::set_global_default(json(settings.level, io::stderr)),
    };
    installed.map_err(LoggingError::Installed)
}

fn to_journal(level: LevelFilter) -> Result<(), LoggingError> {
    let journal = tracing_journald::layer().map_err(LoggingError::Journal)?;
    let subscriber = Registry::default().with(level).with(journal);
    tracing::subscriber::set_global_default(subscriber).map_err(LoggingError::Installed)
}

fn text<W>(level: LevelFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let fields = debug_fn(|writer, field, value| {
        let mut writer = Escaped(writer);
        match field.name() {
            "message" => write!(writer, "{value:?}"),
            name => write!(writer, "{name}={value:?}"),
        }
    });
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .fmt_fields(tracing_subscriber::field::MakeExt::delimited(fields, " "))
        .with_writer(writer)
        .finish()
}

fn json<W>(level: LevelFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .with_max_level(level)
        .with_writer(ToPlain(writer))
        .finish()
}

/// Makes writers of JSON that a terminal may be shown.
struct ToPlain<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for ToPlain<W> {
    type Writer = Plain<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Plain(self.0.make_writer())
    }
}

/// Whether what is written to standard error ends up in the journal: systemd says so by naming the
/// stream, which a redirection leaves behind.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else {
        return false;
    };
    let Ok(metadata) = File::from(stderr).metadata() else {
        return false;
    };
    is_stream(&stream, metadata.dev(), metadata.ino())
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// Writes control characters, and those that reorder text on the screen, as escapes.
struct Escaped<'a, W>(&'a mut W);

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if is_deceptive(character) {
                write!(self.0, "{}", character.escape_default())?;
            } else {
                self.0.write_char(character)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use jiff::Timestamp;
    use tracing::{debug, info, info_span, warn};

    use super::*;
    use crate::source::{PolicyFiles, report_refusal};

    /// What somebody may have called his interface.
    const EVIL: &str = "tap\n2026 ERROR forged\r\x1b[2J\x1b]0;x\x07\u{9b}31m\u{202e}\u{2028}\0";

    #[test]
    fn text_of_hostile_values_is_one_harmless_line_each() {
        let log = captured(|log| {
            tracing::subscriber::with_default(text(LevelFilter::INFO, log), hostile);
        });
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 3, "{log}");
        for line in lines {
            assert!(!line.chars().any(is_deceptive), "{line:?}");
            assert!(line.contains("forged"), "{line:?}");
        }
        assert!(log.contains("\\u{1b}[2J"), "{log}");
    }

    #[test]
    fn json_of_hostile_values_is_one_object_a_line_and_gives_them_back() {
        let log = captured(|log| {
            tracing::subscriber::with_default(json(LevelFilter::INFO, log), hostile);
        });
        assert_eq!(log.lines().count(), 3, "{log}");
        assert!(!log.replace('\n', "").chars().any(is_deceptive), "{log}");
        let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        assert_eq!(first["fields"]["name"], EVIL);
    }

    #[test]
    fn text_carries_level_message_and_fields() {
        let log = captured(|log| {
            tracing::subscriber::with_default(text(LevelFilter::INFO, log), || {
                info!(generation = 7, customers = 2, "policy applied");
                debug!("not at this level");
            });
        });
        assert!(log.contains("INFO"), "{log}");
        assert!(
            log.contains("policy applied generation=7 customers=2"),
            "{log}"
        );
        assert_eq!(log.lines().count(), 1);
    }

    #[test]
    fn every_form_tells_all_causes_of_a_policy_that_was_not_read() {
        // Two levels above what the kernel said.
        let nowhere = PathBuf::from("/proc/self/status/policy.d");
        let refusal = PolicyFiles::new(nowhere).load(Timestamp::now());
        let Err(refusal) = refusal else {
            panic!("read from nowhere");
        };
        let report = || report_refusal(&refusal);
        let log = captured(|log| {
            tracing::subscriber::with_default(text(LevelFilter::INFO, log), report);
        });
        let json = captured(|log| {
            tracing::subscriber::with_default(self::json(LevelFilter::INFO, log), report);
        });
        let kernels = io::Error::from_raw_os_error(nix::libc::ENOTDIR).to_string();
        for log in [log, json] {
            let line = log.lines().next().unwrap();
            assert!(line.contains("policy refused"), "{log}");
            assert!(
                line.contains("the policy directory was not read: "),
                "{log}"
            );
            assert!(line.contains(&kernels), "{log}");
        }
    }

    #[test]
    fn is_stream_wants_device_and_inode() {
        assert!(is_stream("8:42", 8, 42));
        for other in ["8:43", "9:42", "8", "", "8:42:1", "a:b"] {
            assert!(!is_stream(other, 8, 42), "{other}");
        }
    }

    fn hostile() {
        info!(name = EVIL, "interface");
        warn!(name = %EVIL, error = ?io::Error::other(EVIL), "interface");
        let span = info_span!("attach", name = %EVIL);
        span.in_scope(|| info!("{EVIL}"));
    }

    fn captured(run: impl FnOnce(Buffer)) -> String {
        let buffer = Buffer::default();
        run(buffer.clone());
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Buffer {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
