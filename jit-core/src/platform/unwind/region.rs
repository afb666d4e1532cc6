//! Tables by address, for an unwinder that searches its tables one after the other.
//!
//! libgcc before 13 sorts each table at the first throw after it was registered, searches a list
//! of tables, and gives up at the first that begins below the address and does not have it. So
//! there must be few tables, and no function of one may lie between two of another: each table is
//! that of a *region* of the address space, and is replaced when a function in it comes or goes.
//! The new one is registered before the old one is withdrawn; a throw in between finds in either
//! what it looks for.
//!
//! A throw reads the entry that it has found after libgcc has let go of its lock, when the table may have been replaced
//! already. So a table is a list of parts, of which each stays where it is as long as its functions are there.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::Frames;
use super::runtime::TableList;
use crate::sync::{Mutex, lock};

/// The size of a region, as a power of two: a few hundred functions. Replacing a table takes time
/// in proportion to it, and a throw in proportion to the number of tables.
const REGION_LOG2: u32 = 16;

static REGIONS: Mutex<Regions> = Mutex::new(Regions { known: BTreeMap::new(), empty: None });

#[derive(Debug)]
struct Regions {
    known: BTreeMap<u64, Region>,
    /// The one that has no functions: the last that lost them, to which others may come.
    empty: Option<u64>,
}

/// What was registered together, of one region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    region: u64,
    id: u32,
}

#[derive(Debug, Default)]
struct Region {
    /// The numbers of the parts, and their entries.
    parts: Vec<(u32, Vec<u8>)>,
    next: u32,
    table: Option<TableList>,
}

/// Registers frames with the tables of their regions.
pub(super) fn register(frames: &mut Frames) -> SmallVec<[Part; 1]> {
    let key = |start: u64| start >> REGION_LOG2;
    let mut list = std::mem::take(&mut frames.frames);
    let first = key(list[0].start);
    if list.iter().any(|frame| key(frame.start) != first) {
        list.sort_unstable_by_key(|frame| frame.start);
    }
    let mut regions = lock(&REGIONS);
    list.chunk_by(|a, b| key(a.start) == key(b.start))
        .map(|frames_of_region| {
            let region = key(frames_of_region[0].start);
            let id = regions.known.entry(region).or_default().add(frames.encode(frames_of_region));
            Part { region, id }
        })
        .collect()
}

/// Takes parts out of the tables of their regions.
pub(super) fn withdraw(parts: &[Part]) {
    let mut regions = lock(&REGIONS);
    for part in parts {
        let Some(region) = regions.known.get_mut(&part.region) else { continue };
        region.remove(part.id);
        if region.parts.is_empty()
            && let Some(before) = regions.empty.replace(part.region).filter(|before| *before != part.region)
            && regions.known.get(&before).is_some_and(|before| before.parts.is_empty())
        {
            regions.known.remove(&before);
        }
    }
}

impl Region {
    fn add(&mut self, mut entries: Vec<u8>) -> u32 {
        let id = self.next;
        // After 2³² parts the first ones are long gone.
        self.next = self.next.wrapping_add(1);
        entries.extend_from_slice(&[0; TableList::TERMINATOR]);
        self.parts.push((id, entries));
        self.replace();
        id
    }

    fn remove(&mut self, id: u32) {
        let Some(place) = self.parts.iter().position(|(part, _)| *part == id) else { return };
        let part = self.parts.swap_remove(place);
        self.replace();
        // Nobody is in its functions any more, and no table has it.
        drop(part);
    }

    /// The new table is known before the old one is withdrawn.
    fn replace(&mut self) {
        // SAFETY: the parts are whole, and go only after a table without them has taken this one's place.
        self.table = (!self.parts.is_empty())
            .then(|| unsafe { TableList::register(self.parts.iter().map(|(_, entries)| &**entries)) });
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use std::collections::BTreeSet;

    use jit_linker::arch::Architecture;

    use super::super::runtime::{Tables, Unwinder, entry_at, finds, tables};
    use super::super::{Cie, Registration, register_with};
    use super::*;

    /// Bytes of a function.
    const SIZE: u64 = 16;
    const FUNCTIONS: u64 = 4 << (REGION_LOG2 - 4);

    fn functions(start: u64, indices: &[u64], tables: Tables) -> Registration {
        let mut frames = Frames::default();
        let cie = frames.add_cie(Cie::of_calls(Architecture::host().expect("tests run where code can")));
        for index in indices {
            frames.add(cie, start + index * SIZE, SIZE, 0, &[]);
        }
        register_with(&mut frames, tables)
    }

    /// Numbers without a pattern (xorshift).
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Registers and withdraws functions in random order, and looks all of them up in between.
    fn come_and_go(tables: Tables, per_registration: u64) {
        // No code: only its addresses count.
        let place = vec![0u8; (FUNCTIONS * SIZE) as usize];
        let (start, mut state) = (place.as_ptr() as u64, 0x9e37_79b9_7f4a_7c15);
        let mut live: Vec<(Vec<u64>, Registration)> = Vec::new();
        let mut known: BTreeSet<u64> = BTreeSet::new();
        for step in 0..400 {
            if step % 5 == 4 {
                let at = random(&mut state) as usize % live.len();
                let (indices, registration) = live.swap_remove(at);
                drop(registration);
                indices.iter().for_each(|index| assert!(known.remove(index)));
            } else {
                let first = random(&mut state) % (FUNCTIONS - per_registration);
                let indices: Vec<u64> =
                    (first..first + per_registration).filter(|index| !known.contains(index)).collect();
                known.extend(&indices);
                let registration = functions(start, &indices, tables);
                live.push((indices, registration));
            }
            if step % 40 == 0 || step > 390 {
                for index in 0..FUNCTIONS {
                    let found = finds(start + index * SIZE + 1);
                    assert_eq!(found, known.contains(&index), "function {index} in step {step}");
                }
            }
        }
        drop(live);
        assert!((0..FUNCTIONS).all(|index| !finds(start + index * SIZE + 1)));
    }

    #[test]
    fn every_function_is_found_whatever_came_and_went() {
        if Unwinder::host() == Unwinder::Libgcc {
            come_and_go(tables(), 40);
        }
    }

    #[test]
    fn an_entry_stays_where_it_is_while_others_come_and_go() {
        if tables() != Tables::Listed {
            // What comes later has a table of its own.
            return;
        }
        let place = vec![0u8; (FUNCTIONS * SIZE) as usize];
        let start = place.as_ptr() as u64;
        let _stays = functions(start, &[1], Tables::Listed);
        // A throw may be reading it at any time from here on.
        let entry = entry_at(start + SIZE + 1);
        assert!(!entry.is_null());
        let before = functions(start, &[0], Tables::Listed);
        let after = functions(start, &[2], Tables::Listed);
        assert_eq!(entry_at(start + SIZE + 1), entry);
        drop(before);
        assert_eq!(entry_at(start + SIZE + 1), entry);
        drop(after);
        assert_eq!(entry_at(start + SIZE + 1), entry);
    }

    #[test]
    fn tables_that_do_not_overlap_serve_every_unwinder() {
        // One function each: a longer run could surround another.
        come_and_go(Tables::Disjoint, 1);
    }
}
