//! Reserved huge pages on a real kernel: needs root, since they are reserved by a sysctl.
//!
//! A file of its own, so that no other test maps memory meanwhile.

use std::fs;

use pinning::memory::{HUGE_PAGE_BYTES, PageKind, Prefault, map_words};

const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Pages the test reserves beyond what is there.
const PAGES: usize = 3;

/// Puts the operator's number of reserved pages back, also after a failed assertion.
struct Restore(String);

impl Drop for Restore {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the sysctl is readable for whoever looks.
        let _ = fs::write(RESERVED, &self.0);
    }
}

fn read_number(path: &str) -> usize {
    fs::read_to_string(path).expect(path).trim().parse().expect(path)
}

#[test]
fn reserved_pages_are_used_while_there_are_enough_and_then_ordinary_memory_is() {
    if std::env::var_os("XSKIFF_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        eprintln!("NOT RUN, as XSKIFF_SKIP_ROOT_TESTS=1 asks: reserved huge pages need root");
        return;
    }
    let before = read_number(RESERVED);
    let restore = Restore(before.to_string());
    fs::write(RESERVED, (before + PAGES).to_string()).unwrap_or_else(|error| {
        panic!("{RESERVED}: {error}; run as root, or set XSKIFF_SKIP_ROOT_TESTS=1 to go without")
    });
    let free = read_number(FREE);
    assert!(free >= PAGES, "the kernel found only {free} free huge pages of {PAGES}");

    let bytes = (PAGES - 1) * HUGE_PAGE_BYTES;
    let huge = map_words(bytes, Prefault::OnUse).expect("memory");
    assert_eq!(huge.pages(), PageKind::ReservedHuge);
    assert!(read_number(FREE) + (PAGES - 1) <= free, "huge pages are present before first use");
    assert!(huge.into_bytes().iter().all(|byte| *byte == 0));

    let more = (read_number(FREE) + 1) * HUGE_PAGE_BYTES;
    let ordinary = map_words(more, Prefault::OnUse).expect("memory");
    assert_ne!(ordinary.pages(), PageKind::ReservedHuge);
    drop(restore);
    assert_eq!(read_number(RESERVED), before.max(PAGES - 1), "pages in use stay until the end");
}
