//! One connection, within its time.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::counts::{Counts, Ended};
use super::server::reset;
use super::session::{Session, Step};
use super::template::MAX_LINE;

/// Input that is kept: a line, and something of the next.
const BUFFER: usize = 2 * MAX_LINE;
/// How long a client has to take the last reply and hang up.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection and its conversation.
pub(super) struct Connection {
    stream: TcpStream,
    session: Session,
    limits: Limits,
    /// A reply is on its way; another would land in its middle.
    writing: bool,
}

/// Why a conversation is over.
enum Over {
    /// The client hung up.
    HungUp,
    /// The last reply was sent.
    Said(LastWord),
    /// Nothing came for too long.
    Idle,
    /// A reply was not taken for too long.
    NotRead,
    Broken,
}

/// Why the last reply was the last.
enum LastWord {
    /// The client asked for it.
    Asked,
    /// The client went too far.
    TooFar,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, session: Session, limits: Limits) -> Self {
        Self {
            stream,
            session,
            limits,
            writing: false,
        }
    }

    /// Carries the conversation out; `None` if `shutdown` ended it.
    pub(super) async fn serve(
        mut self,
        counts: &Counts,
        shutdown: &CancellationToken,
    ) -> Option<Ended> {
        let limit = self.limits.connection;
        let conversation = timeout(limit, self.converse(counts));
        let over = shutdown.run_until_cancelled(conversation).await;
        let Some(over) = over else {
            let farewell = self.session.stopping();
            self.say_at_once(&farewell);
            return None;
        };
        let told = match self.session.refusals() {
            0 => Ended::Unanswered,
            _ => Ended::Answered,
        };
        Some(match over {
            Ok(Over::HungUp) => told,
            Ok(Over::Said(LastWord::Asked)) => {
                self.hang_up().await;
                told
            }
            Ok(Over::Said(LastWord::TooFar)) => {
                self.hang_up().await;
                Ended::Error
            }
            Ok(Over::Broken) if told == Ended::Answered => told,
            Ok(Over::Broken) => Ended::Error,
            Ok(Over::NotRead) => {
                reset(self.stream);
                Ended::Timeout
            }
            Ok(Over::Idle) | Err(_) => {
                let farewell = self.session.too_slow();
                if self.say_at_once(&farewell) {
                    self.hang_up().await;
                } else {
                    reset(self.stream);
                }
                Ended::Timeout
            }
        })
    }

    async fn converse(&mut self, counts: &Counts) -> Over {
        let greeting = self.session.greeting();
        if let Err(over) = self.say(&greeting).await {
            return over;
        }
        let mut buffer = [0; BUFFER];
        let mut filled = 0;
        loop {
            let mut taken = 0;
            loop {
                let refusals = self.session.refusals();
                let rest = buffer.get(taken..filled).unwrap_or_default();
                let (length, step) = self.session.step(rest);
                taken += length;
                let (reply, is_last) = match step {
                    // What is left may be the beginning of a chunk that was announced.
                    Step::More if length > 0 && taken < filled => continue,
                    Step::More => break,
                    Step::Reply(reply) => (reply, None),
                    Step::Asked(reply) => (reply, Some(LastWord::Asked)),
                    Step::TooFar(reply) => (reply, Some(LastWord::TooFar)),
                };
                if let Err(over) = self.say(&reply).await {
                    return over;
                }
                if self.session.refusals() > refusals {
                    counts.refused();
                }
                if let Some(why) = is_last {
                    return Over::Said(why);
                }
            }
            buffer.copy_within(taken..filled, 0);
            filled -= taken;
            // There is room: of a whole line's length the session takes something.
            let room = buffer.get_mut(filled..).unwrap_or_default();
            match timeout(self.limits.idle, self.stream.read(room)).await {
                Err(_elapsed) => return Over::Idle,
                Ok(Err(_broken)) => return Over::Broken,
                Ok(Ok(0)) => return Over::HungUp,
                Ok(Ok(length)) => filled += length,
            }
        }
    }

    async fn say(&mut self, reply: &str) -> Result<(), Over> {
        self.writing = true;
        match timeout(self.limits.idle, self.stream.write_all(reply.as_bytes())).await {
            Err(_elapsed) => return Err(Over::NotRead),
            Ok(Err(_broken)) => return Err(Over::Broken),
            Ok(Ok(())) => {}
        }
        self.writing = false;
        Ok(())
    }

    /// Says something where that needs no waiting; tells whether all of it was said.
    fn say_at_once(&self, reply: &str) -> bool {
        let said = |written: io::Result<usize>| written.is_ok_and(|octets| octets == reply.len());
        !self.writing && said(self.stream.try_write(reply.as_bytes()))
    }

    /// Ends the connection after the last reply. Closing at once would reset it where input is left,
    /// and the reply with it; a client that does not hang up is reset.
    async fn hang_up(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; BUFFER];
        let ended = timeout(FAREWELL, async {
            while matches!(self.stream.read(&mut sink).await, Ok(1..)) {}
        });
        if ended.await.is_err() {
            reset(self.stream);
        }
    }
}
