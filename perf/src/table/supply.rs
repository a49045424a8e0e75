//! Memory for a table that grows, taken ahead of it by a thread of its own, as the node's control
//! thread has it done: the one who inserts meets no page that is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use flow_table::{Memory, Owner, Quiescence, Shape, Table};
use pinning::growing::{Growing, map_growing};
use pinning::memory_file::FileError;

/// How often it is seen whether a table has grown: as often as the node does it.
const LOOK: Duration = Duration::from_millis(10);

/// Flows that there is memory for from the start, at least: as many as the node's smallest table has. A
/// smaller one would be full before anybody looks.
const COMMITTED_LEAST: usize = 1 << 17;

/// What is given back when the table is gone.
#[derive(Debug)]
pub struct Supply {
    growing: Arc<Growing>,
    bytes: usize,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), FileError>>>,
}

/// A table, its owners, and what supplies it.
type Supplied<const W: usize> = ((Arc<Table<W>>, Vec<Owner<W>>), Supply);

/// An empty table of this shape, with memory for what it is and for its next doubling.
///
/// # Errors
/// There is not that much memory.
pub fn table<const W: usize>(mut shape: Shape, quiescence: Arc<Quiescence>) -> Result<Supplied<W>> {
    shape.committed = shape.capacity_max.min(COMMITTED_LEAST.max(2 * shape.capacity));
    let (memory, growing) = map_growing(Table::<W>::memory_bytes(&shape)?)?;
    let (bytes, growing) = (memory.len(), Arc::new(growing));
    growing.take(&Table::<W>::regions(&shape, shape.committed)?)?;
    let made = Table::new(Memory::Mapped(memory), shape, quiescence)?;
    let (table, is_over) = (Arc::clone(&made.0), Arc::new(AtomicBool::new(false)));
    let (takes, until) = (Arc::clone(&growing), Arc::clone(&is_over));
    let thread = std::thread::Builder::new().name("flow-memory".into()).spawn(move || {
        let mut taken = shape.committed;
        while !until.load(Ordering::Relaxed) {
            let wanted = shape.capacity_max.min(2 * table.capacity() as usize);
            if wanted > taken {
                takes.take(&table.regions_of(wanted))?;
                table.commit(wanted);
                taken = wanted;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    })?;
    Ok((made, Supply { growing, bytes, is_over, thread: Some(thread) }))
}

impl Supply {
    /// Ends it, once nobody uses the table any more.
    ///
    /// # Errors
    /// There was not enough memory.
    fn end(&mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the thread that takes memory panicked"))??;
        self.growing.give_back(&(0..self.bytes))?;
        Ok(())
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("memory of a growing table: {error:#}");
        }
    }
}
