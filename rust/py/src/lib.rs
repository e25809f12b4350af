//! `spacegrid._core`: the Python face of `spacegrid-core`.
//!
//! Checks arguments, detaches from the interpreter where work is worth it, and calls core. No lock
//! of core is ever held while this side waits for the interpreter.

#![allow(missing_docs, reason = "the contract is python/spacegrid/_core.pyi")]

mod assign;
mod client;
mod errors;
mod frames;
mod gate;
mod heart;
mod keys;
mod net;
mod node;
mod ring;
mod turn;

use pyo3::prelude::*;

/// Switch a planted bug on for the rest of the process.
#[cfg(feature = "planted")]
#[pyfunction]
fn plant(name: &str) -> PyResult<()> {
    if spacegrid_core::planted::choose(name) {
        return Ok(());
    }
    Err(pyo3::exceptions::PyValueError::new_err(format!("no planted bug is called {name:?}")))
}

/// The extension module.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    assign::register(module)?;
    client::register(module)?;
    frames::register(module)?;
    gate::register(module)?;
    keys::register(module)?;
    heart::register(module)?;
    net::register(module)?;
    node::register(module)?;
    ring::register(module)?;
    turn::register(module)?;
    #[cfg(feature = "planted")]
    module.add_function(wrap_pyfunction!(plant, module)?)?;
    Ok(())
}
