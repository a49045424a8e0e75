//! Packet memory on reserved huge pages, on a real kernel: needs root, since an operator's sysctl
//! reserves them.
//!
//! A file of its own, so that no other test maps memory meanwhile.

use std::fs;

use xdp_redirect::Umem;
use xdp_redirect::pool::FramePool;
use xdp_redirect::umem::{HugePages, UmemConfig};

const PAGES_FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGE_BYTES: usize = 2 << 20;
/// Pages of the packet memory under test.
const PAGES: usize = 2;

fn number(file: &str) -> usize {
    let path = format!("{PAGES_FOLDER}/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The operator's number of pages, put back whatever happens.
struct Reserved {
    before: usize,
}

impl Reserved {
    fn set(pages: usize) {
        let path = format!("{PAGES_FOLDER}/nr_hugepages");
        fs::write(&path, pages.to_string()).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Sees to it that `pages` are free.
    fn free(&self, pages: usize) {
        let used = number("nr_hugepages") - number("free_hugepages");
        Self::set(used + pages);
        assert_eq!(number("free_hugepages"), pages, "the kernel found no more huge pages");
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // After a failed assertion the first failure is what counts.
        let _ = fs::write(format!("{PAGES_FOLDER}/nr_hugepages"), self.before.to_string());
    }
}

fn packet_memory(huge_pages: HugePages) -> Umem {
    let frames = u32::try_from(PAGES * PAGE_BYTES / 2048).expect("small");
    let config = UmemConfig { frames, chunk_bytes: 2048, huge_pages, ..UmemConfig::default() };
    Umem::new(config).expect("packet memory")
}

/// Every frame is written and read back: the mapping is the size that was asked for.
fn assert_usable(umem: &Umem) {
    let mut pool = FramePool::new(umem);
    let held: Vec<_> = std::iter::from_fn(|| pool.allocate_with(&[0x5a; 1500])).collect();
    assert_eq!(held.len(), PAGES * PAGE_BYTES / 2048);
    for frame in held {
        pool.release(frame);
    }
    drop(pool);
    let census = umem.census();
    assert_eq!(census.free, census.total);
}

#[test]
fn packet_memory_lies_on_huge_pages_while_there_are_enough_and_works_without() {
    if std::env::var_os("XSKIFF_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED: XSKIFF_SKIP_ROOT_TESTS=1, huge pages were not tried");
        return;
    }
    let reserved = Reserved { before: number("nr_hugepages") };

    reserved.free(PAGES);
    let umem = packet_memory(HugePages::WhenAvailable);
    assert!(umem.has_huge_pages());
    assert_eq!(number("free_hugepages") - number("resv_hugepages"), 0, "it lies on them");
    assert_usable(&umem);
    // None is left for a second one, which takes ordinary pages and says so.
    let second = packet_memory(HugePages::WhenAvailable);
    assert!(!second.has_huge_pages());
    assert_usable(&second);
    drop(umem);

    reserved.free(PAGES);
    let never = packet_memory(HugePages::Never);
    assert!(!never.has_huge_pages());
    assert_eq!(number("free_hugepages"), PAGES);
    // One page less than it takes.
    reserved.free(PAGES - 1);
    let short = packet_memory(HugePages::WhenAvailable);
    assert!(!short.has_huge_pages());
    assert_usable(&short);
}
