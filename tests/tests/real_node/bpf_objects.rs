//! BPF objects of one node, looked for among all that the kernel has: also those that nobody holds by a
//! descriptor, and none of other tests' nodes.

use std::collections::BTreeSet;

use xdp_redirect::loaded::Loaded;

/// What a process holds by descriptors: numbers of maps and of programs.
fn held(process: u32) -> [BTreeSet<u32>; 2] {
    let entries = std::fs::read_dir(format!("/proc/{process}/fdinfo")).expect("its descriptors");
    let texts = entries.flatten().filter_map(|one| std::fs::read_to_string(one.path()).ok());
    let text: String = texts.collect();
    ["map_id:", "prog_id:"].map(|field| {
        let values = text.lines().filter_map(|line| line.strip_prefix(field));
        values.filter_map(|value| value.trim().parse().ok()).collect()
    })
}

/// How many programs, links and maps there are that have to do with a process: programs that it holds or
/// that use a map it holds, links of these, and maps of either.
pub fn of(process: u32) -> String {
    let ([mut maps, held_programs], loaded) = (held(process), Loaded::now());
    assert!(!maps.is_empty() && !loaded.programs.is_empty(), "{maps:?}");
    let is_own = |(number, program): &(&u32, &xdp_redirect::loaded::LoadedProgram)| {
        held_programs.contains(number) || program.maps.iter().any(|map| maps.contains(map))
    };
    let own: Vec<_> = loaded.programs.iter().filter(is_own).collect();
    let programs: BTreeSet<u32> = own.iter().map(|(number, _)| **number).collect();
    let used: BTreeSet<u32> = own.iter().flat_map(|(_, program)| program.maps.clone()).collect();
    maps.extend(used);
    maps.retain(|map| loaded.maps.contains_key(map));
    let links = loaded.links.values().filter(|program| programs.contains(program)).count();
    format!("{} programs, {links} links, {} maps", programs.len(), maps.len())
}

/// The kernel's number of the map of this name that `process` holds.
pub fn map_of(process: u32, name: &str) -> u32 {
    let ([maps, _], loaded) = (held(process), Loaded::now());
    let own = maps.into_iter().find(|map| loaded.maps.get(map).is_some_and(|own| **own == *name));
    own.unwrap_or_else(|| panic!("no map {name} among {:?}", loaded.maps))
}

/// Maps that no program uses. Those of a node that is about to load its program are so for a moment.
pub fn maps_without_program() -> BTreeSet<u32> {
    Loaded::now().maps_without_program().map(|(map, _)| map).collect()
}
