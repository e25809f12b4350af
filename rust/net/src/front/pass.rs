//! What a call was let in with, and the question whether that still holds.

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use spacegrid_core::gate::{Caller, Gate, Refusal, Rights};

use super::acceptor::Proof;
use crate::status::{Code, Status};

/// One call's right to be here.
pub(crate) struct Pass {
    gate: Option<Arc<Gate>>,
    proof: Rc<Proof>,
    method: String,
    authorization: Option<Vec<u8>>,
    caller: Caller,
}

impl Pass {
    /// Ask the gate about a call; without one everyone is let in.
    pub(crate) fn ask(
        gate: Option<&Arc<Gate>>,
        proof: &Rc<Proof>,
        method: &str,
        headers: &HeaderMap,
    ) -> Result<Self, Status> {
        let mut pass = Self {
            gate: gate.cloned(),
            proof: proof.clone(),
            method: method.to_owned(),
            authorization: headers.get(AUTHORIZATION).map(|value| value.as_bytes().to_vec()),
            caller: Caller::local(),
        };
        pass.renew()?;
        Ok(pass)
    }

    fn renew(&mut self) -> Result<(), Status> {
        if let Some(gate) = &self.gate {
            let authorization = self.authorization.as_deref();
            let certificate = self.proof.certificate.as_deref();
            let admitted = gate.admit(&self.method, certificate, authorization, &self.proof.remote);
            self.caller = admitted.map_err(refused)?;
        }
        Ok(())
    }

    /// Who calls.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What it may do with data, now: tokens that were taken back since then end its call.
    pub(crate) fn rights(&mut self) -> Result<Rights, Status> {
        if self.gate.as_ref().is_some_and(|gate| gate.generation() != self.caller.generation) {
            self.renew()?;
        }
        Ok(self.caller.role.rights())
    }
}

fn refused(refusal: Refusal) -> Status {
    let code = if refusal.is_permission() { Code::PermissionDenied } else { Code::Unauthenticated };
    Status::new(code, refusal.message())
}
