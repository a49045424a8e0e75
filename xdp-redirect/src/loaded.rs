//! Every BPF object that the kernel has, whoever made it: for whoever looks for what was left behind.

use std::collections::BTreeMap;

/// BPF objects by the kernel's numbers. What comes or goes while it is asked may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Maps, with their names.
    pub maps: BTreeMap<u32, Box<str>>,
    /// Programs.
    pub programs: BTreeMap<u32, LoadedProgram>,
    /// Links, with the numbers of their programs.
    pub links: BTreeMap<u32, u32>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedProgram {
    /// Its name.
    pub name: Box<str>,
    /// The maps that it uses.
    pub maps: Vec<u32>,
}

impl Loaded {
    /// What there is now; needs `CAP_SYS_ADMIN`, without which it is nothing.
    #[must_use]
    pub fn now() -> Self {
        let text = |name: Option<&str>| name.unwrap_or_default().into();
        let maps = aya::maps::loaded_maps().filter_map(Result::ok);
        let programs = aya::programs::loaded_programs().filter_map(Result::ok);
        let links = aya::programs::loaded_links().filter_map(Result::ok);
        Self {
            maps: maps.map(|map| (map.id(), text(map.name_as_str()))).collect(),
            programs: programs
                .map(|program| {
                    let maps = program.map_ids().ok().flatten().unwrap_or_default();
                    let name = text(program.name_as_str());
                    (program.id(), LoadedProgram { name, maps })
                })
                .collect(),
            links: links.map(|link| (link.id(), link.program_id())).collect(),
        }
    }

    /// Maps that no program uses: of somebody who has loaded none yet, or left behind.
    pub fn maps_without_program(&self) -> impl Iterator<Item = (u32, &str)> {
        let used = |map: &u32| self.programs.values().any(|program| program.maps.contains(map));
        let unused = self.maps.iter().filter(move |(map, _)| !used(map));
        unused.map(|(map, name)| (*map, &**name))
    }
}
