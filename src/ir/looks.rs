//! Counts how often this thread looks at nodes, values and edges of graphs: what the test that work grows as the graph does measures.

use std::cell::Cell;

thread_local! {
    static LOOKS: Cell<u64> = const { Cell::new(0) };
}

/// One more look.
pub(super) fn look() {
    LOOKS.set(LOOKS.get() + 1);
}

/// What a function gives, and how often it looked.
pub(crate) fn count<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = LOOKS.get();
    let done = work();
    (done, LOOKS.get() - before)
}
