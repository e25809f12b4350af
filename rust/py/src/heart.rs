//! `Heart` for Python: what a node's heartbeats say, and the leases that their answers bring.

use parking_lot::Mutex;
use pyo3::prelude::*;
use spacegrid_core::replica::{Answer, Grant, Heart as CoreHeart};
use spacegrid_net::SharedHeart;

/// Adds the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Heart>()
}

/// The heartbeats of one node.
#[pyclass(frozen, module = "spacegrid._core")]
pub struct Heart {
    /// Shared with the net thread, which sends them.
    pub core: SharedHeart,
}

#[pymethods]
impl Heart {
    #[new]
    fn new(held_ms: u64) -> Self {
        Self { core: SharedHeart::new(Mutex::new(CoreHeart::new(held_ms))) }
    }

    fn say(&self, progress: Vec<u64>, heard_term: u64, registered_until_ms: u64, now_ms: u64) {
        self.core.lock().say(progress, heard_term, registered_until_ms, now_ms);
    }

    fn beat(&self, now_ms: u64) -> (u64, u64, Vec<u64>, u64) {
        let beat = self.core.lock().beat(now_ms);
        (beat.nonce, beat.revision, beat.progress, beat.heard_term)
    }

    fn answered(
        &self,
        nonce: u64,
        lease_ms: u64,
        revision: u64,
        term: u64,
        now_ms: u64,
    ) -> Option<(u64, u64)> {
        let answer = Answer { nonce, lease_ms, revision, term };
        self.core.lock().answered(answer, now_ms).map(pair)
    }

    fn applied(&self, revision: u64) -> Option<(u64, u64)> {
        self.core.lock().applied(revision).map(pair)
    }

    fn heard(&self) -> (u64, u64) {
        self.core.lock().heard()
    }
}

fn pair(grant: Grant) -> (u64, u64) {
    (grant.revision, grant.until_ms)
}
