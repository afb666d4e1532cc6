//! Who depends on whom: edges between symbols, listed from both ends, so that either end can be
//! removed in time proportional to its own edges.

/// No edge.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Edge {
    /// The symbol that depends, as an index.
    from: u32,
    /// The symbol it depends on, as an index.
    to: u32,
    next_from: u32,
    next_to: u32,
    prev_to: u32,
}

/// All edges of a session. The heads of both lists are kept in the symbols.
#[derive(Default)]
pub(crate) struct Edges {
    edges: Vec<Edge>,
    /// Head of the list of unused places, linked by `next_from`.
    free: Option<u32>,
    unused: usize,
}

impl Edges {
    /// Adds an edge to the front of both lists, whose heads so far are given, and returns it: the
    /// new head of both.
    pub(crate) fn add(&mut self, from: u32, needs: u32, to: u32, needed_by: u32) -> u32 {
        let edge = Edge { from, to, next_from: needs, next_to: needed_by, prev_to: NONE };
        let index = match self.free {
            Some(index) => {
                let next = self.edges[index as usize].next_from;
                self.free = (next != NONE).then_some(next);
                self.unused -= 1;
                self.edges[index as usize] = edge;
                index
            }
            None => {
                let index = u32::try_from(self.edges.len()).expect("edges stay below 2^32");
                self.edges.push(edge);
                index
            }
        };
        if needed_by != NONE {
            self.edges[needed_by as usize].prev_to = index;
        }
        index
    }

    /// The symbol an edge leads to, and the next edge of the symbol it comes from.
    pub(crate) fn need(&self, edge: u32) -> (u32, u32) {
        let edge = &self.edges[edge as usize];
        (edge.to, edge.next_from)
    }

    /// The symbols at the other end of a `needed_by` list.
    pub(crate) fn dependants(&self, mut head: u32) -> impl Iterator<Item = u32> {
        std::iter::from_fn(move || {
            let edge = self.edges.get(head as usize)?;
            head = edge.next_to;
            Some(edge.from)
        })
    }

    /// Removes all edges of a `needs` list. `heads` gives the `needed_by` head of a symbol.
    pub(crate) fn remove_needs(&mut self, mut head: u32, mut heads: impl FnMut(u32, u32)) {
        while head != NONE {
            let edge = self.edges[head as usize];
            if edge.next_to != NONE {
                self.edges[edge.next_to as usize].prev_to = edge.prev_to;
            }
            if edge.prev_to != NONE {
                self.edges[edge.prev_to as usize].next_to = edge.next_to;
            } else if edge.to != NONE {
                heads(edge.to, edge.next_to);
            }
            self.release(head);
            head = edge.next_from;
        }
    }

    /// Forgets where the edges of a `needed_by` list lead: the symbol they share is gone.
    pub(crate) fn orphan(&mut self, mut head: u32) {
        while head != NONE {
            let edge = &mut self.edges[head as usize];
            head = edge.next_to;
            (edge.to, edge.next_to, edge.prev_to) = (NONE, NONE, NONE);
        }
    }

    /// How many edges there are.
    pub(crate) fn count(&self) -> usize {
        self.edges.len() - self.unused
    }

    fn release(&mut self, index: u32) {
        self.edges[index as usize].next_from = self.free.unwrap_or(NONE);
        self.free = Some(index);
        self.unused += 1;
    }
}
