//! DPDK's rte_hash, in a process of its own: `rte_hash_peer.c`, which the build script compiles
//! where libdpdk is installed. Flows and keys go there by a pipe before its clock starts.

use std::io::{BufWriter, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pinning::CpuId;

use super::flow::{Flow, Tally, Tuple};
use super::subject::{Subject, Timed, WORKERS};

/// As figures name it.
pub const NAME: &str = "rte_hash";
/// The program; empty where libdpdk was not found.
const PROGRAM: &str = env!("XSKIFF_RTE_HASH_PEER");
/// Words of an answer.
const REPLY_WORDS: usize = 5;

/// Why the subject is left out, if it is.
pub fn missing() -> Option<&'static str> {
    PROGRAM.is_empty().then_some("libdpdk was not found when this program was built")
}

/// What is asked for; the numbers are the program's.
#[derive(Debug, Clone, Copy)]
enum Request {
    Insert = 1,
    LookUp,
    Share,
    Remove,
    Sweep,
    Audit,
}

/// The process.
#[derive(Debug)]
pub struct RteHash {
    child: Child,
    /// Taken when it is to end.
    requests: Option<BufWriter<ChildStdin>>,
    answers: ChildStdout,
    cores: [CpuId; WORKERS],
    memory_bytes: u64,
}

struct Answer {
    time: Duration,
    tally: Tally,
}

impl RteHash {
    /// An empty table in a process on `cores`.
    ///
    /// # Errors
    /// The process cannot be started, or has not that much memory; it says why.
    pub fn start<const K: usize>(
        flows: usize,
        two_keys: bool,
        cores: [CpuId; WORKERS],
    ) -> Result<Self> {
        let keys = if two_keys { 2 } else { 1 };
        let numbers = [cores[0].0.into(), cores[1].0.into(), flows, K, keys];
        let mut child = Command::new(PROGRAM)
            .args(numbers.map(|number: usize| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {PROGRAM}"))?;
        let requests = child.stdin.take().map(|pipe| BufWriter::with_capacity(1 << 20, pipe));
        let answers = child.stdout.take().context("a pipe was asked for")?;
        let mut started = Self { child, requests, answers, cores, memory_bytes: 0 };
        started.memory_bytes = started.answer()?.tally.found;
        Ok(started)
    }

    fn ask<'t, const K: usize>(
        &mut self,
        request: Request,
        count: usize,
        now: u64,
        records: impl Iterator<Item = &'t Tuple<K>>,
    ) -> Result<Answer> {
        self.send(request, count, now)?;
        let requests = self.requests.as_mut().context("it has ended")?;
        for word in records.flat_map(|tuple| tuple.0) {
            requests.write_all(&word.to_ne_bytes())?;
        }
        self.answer()
    }

    fn send(&mut self, request: Request, count: usize, now: u64) -> Result<()> {
        let requests = self.requests.as_mut().context("it has ended")?;
        let count = u32::try_from(count).context("records of one request")?;
        requests.write_all(&(request as u32).to_ne_bytes())?;
        requests.write_all(&count.to_ne_bytes())?;
        requests.write_all(&now.to_ne_bytes())?;
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer> {
        self.requests.as_mut().map(Write::flush).transpose()?;
        let mut bytes = [0; REPLY_WORDS * size_of::<u64>()];
        self.answers.read_exact(&mut bytes).context("rte_hash has ended without an answer")?;
        let mut words = [0; REPLY_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let [failed, nanoseconds, found, states, packets] = words;
        if failed != 0 {
            bail!("rte_hash refuses: {}", std::io::Error::from_raw_os_error(failed as i32));
        }
        let time = Duration::from_nanos(nanoseconds);
        Ok(Answer { time, tally: Tally { found, states, packets } })
    }
}

impl Drop for RteHash {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.requests.take());
        if let Err(error) = self.child.wait() {
            eprintln!("rte_hash: {error}");
        }
    }
}

impl<const K: usize> Subject<K> for RteHash {
    fn name(&self) -> &'static str {
        NAME
    }

    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<Duration> {
        self.send(Request::Insert, flows.len(), now)?;
        let requests = self.requests.as_mut().context("it has ended")?;
        for flow in flows {
            for word in flow.key.0.iter().chain(&flow.alias.0).chain([&flow.state]) {
                requests.write_all(&word.to_ne_bytes())?;
            }
        }
        Ok(self.answer()?.time)
    }

    fn look_up(&mut self, keys: &[Tuple<K>], now: u64) -> Result<Timed> {
        let answer = self.ask(Request::LookUp, keys.len(), now, keys.iter())?;
        Ok((answer.time, answer.tally))
    }

    fn remove(&mut self, keys: &[Tuple<K>]) -> Result<Timed> {
        let answer = self.ask(Request::Remove, keys.len(), 0, keys.iter())?;
        Ok((answer.time, answer.tally))
    }

    fn sweep(&mut self, now: u64) -> Result<Timed> {
        let answer = self.ask::<K>(Request::Sweep, 0, now, [].iter())?;
        Ok((answer.time, answer.tally))
    }

    fn share(
        &mut self,
        keys: [&[Tuple<K>]; WORKERS],
        cores: [CpuId; WORKERS],
        now: u64,
    ) -> Result<Option<Timed>> {
        if cores != self.cores {
            bail!("rte_hash was started for other cores");
        }
        let [first, second] = keys;
        let count = first.len().min(second.len());
        let records = first.iter().take(count).chain(second.iter().take(count));
        let answer = self.ask(Request::Share, count, now, records)?;
        Ok(Some((answer.time, answer.tally)))
    }

    fn audit(&mut self, keys: &[Tuple<K>]) -> Result<Tally> {
        Ok(self.ask(Request::Audit, keys.len(), 0, keys.iter())?.tally)
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}
