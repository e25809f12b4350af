//! `Gate` for Python: who is calling, and whether this caller may make this call.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use spacegrid_core::gate::{Gate as CoreGate, hash_secret};

pyo3::create_exception!(
    spacegrid._core,
    GateRefused,
    PyException,
    "A request that the gate refuses: (code, message, whether it is known who calls)."
);

/// Adds the class, the exception and the function to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("GateRefused", module.py().get_type::<GateRefused>())?;
    module.add_function(wrap_pyfunction!(token_hash, module)?)?;
    module.add_class::<Gate>()
}

/// The hash that is kept of a token's secret.
#[pyfunction]
fn token_hash(salt: &[u8], secret: &str) -> [u8; 32] {
    hash_secret(salt, secret)
}

/// Audit lines (code, method, caller, remote), and how many more there were.
type Audit = (Vec<(String, String, String, String)>, u64);

/// The gate of a node.
#[pyclass(frozen, module = "spacegrid._core")]
pub struct Gate {
    /// Shared with the front that asks it.
    pub core: Arc<CoreGate>,
}

#[pymethods]
impl Gate {
    #[new]
    fn new(cluster: &str, methods: HashMap<String, u8>) -> Self {
        Self { core: Arc::new(CoreGate::new(cluster, methods)) }
    }

    #[getter]
    fn generation(&self) -> u64 {
        self.core.generation()
    }

    fn set_tokens(&self, text: &str) -> PyResult<usize> {
        self.core.set_tokens(text).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[pyo3(signature = (method, *, certificate = None, authorization = None, remote = ""))]
    fn admit(
        &self,
        method: &str,
        certificate: Option<&str>,
        authorization: Option<&[u8]>,
        remote: &str,
    ) -> PyResult<(u8, String)> {
        match self.core.admit(method, certificate, authorization, remote) {
            Ok(caller) => Ok((caller.role.bit(), caller.name.to_string())),
            Err(refusal) => Err(GateRefused::new_err((
                refusal.code(),
                refusal.message(),
                refusal.is_permission(),
            ))),
        }
    }

    fn take_audit(&self) -> Audit {
        let (lines, dropped) = self.core.take_audit();
        let lines = lines
            .into_iter()
            .map(|line| (line.refusal.code().to_owned(), line.method, line.caller, line.remote))
            .collect();
        (lines, dropped)
    }
}
