//! What passes and what does not: certificates, tokens, the table, the log, hostile text.

use proptest::prelude::*;

use super::*;
use crate::frame::Opcode;

const EVERY: [Opcode; 8] = [
    Opcode::Get,
    Opcode::Put,
    Opcode::Delete,
    Opcode::Incr,
    Opcode::Invoke,
    Opcode::Size,
    Opcode::Scan,
    Opcode::Contains,
];
const GET: &str = "/spacegrid.v1.Data/Get";
const PUT: &str = "/spacegrid.v1.Data/Put";
const LINK: &str = "/spacegrid.v1.Peers/Link";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn line(id: &str, name: &str, role: &str, secret: &str) -> String {
    let salt = *b"saltsalt";
    format!("{id} {name} {role} {} {}\n", hex(&salt), hex(&hash_secret(&salt, secret)))
}

fn gate() -> Gate {
    let readers = Role::Read.bit() | Role::Write.bit() | Role::Admin.bit();
    let table = [(GET, readers), (PUT, readers & !1), (LINK, Role::Node.bit())];
    let gate = Gate::new("shop", table.map(|(path, roles)| (path.to_owned(), roles)));
    let text = line("a1", "board", "read", "see") + &line("b2", "app", "write", "change");
    assert_eq!(gate.set_tokens(&text), Ok(2));
    gate
}

fn with_token(gate: &Gate, method: &str, token: &str) -> Result<Caller, Refusal> {
    gate.admit(method, None, Some(format!("Bearer {token}").as_bytes()), "10.0.0.9:1")
}

#[test]
fn a_reader_changes_nothing_and_a_stranger_reads_nothing() {
    for opcode in EVERY {
        assert!(!Rights::NONE.allow(opcode));
        assert_eq!(Rights::READ.allow(opcode), !opcode.is_mutating(), "{opcode:?}");
        assert!(Rights::ALL.allow(opcode));
    }
    assert_eq!(Rights::from_bits(0xfc), Rights::NONE);
    assert_eq!(Rights::default(), Rights::NONE);
}

#[test]
fn a_token_has_its_role_and_no_more() {
    let gate = gate();
    let caller = with_token(&gate, GET, "sg1.a1.see").expect("a reader reads");
    assert_eq!((caller.role, &*caller.name), (Role::Read, "board"));
    assert_eq!(with_token(&gate, PUT, "sg1.a1.see"), Err(Refusal::Denied));
    assert_eq!(with_token(&gate, PUT, "sg1.b2.change").map(|c| c.role), Ok(Role::Write));
    assert_eq!(with_token(&gate, LINK, "sg1.b2.change"), Err(Refusal::Denied));
}

#[test]
fn what_is_no_token_is_refused_and_not_said_why() {
    let gate = gate();
    for wrong in ["sg1.a1.change", "sg1.a1.", "sg1.zz.see", "sg2.a1.see", "", "sg1.a1", "é"] {
        assert_eq!(with_token(&gate, GET, wrong), Err(Refusal::Unknown), "{wrong}");
    }
    assert_eq!(with_token(&gate, GET, &"x".repeat(600)), Err(Refusal::Missing));
    assert_eq!(gate.admit(GET, None, Some(b"Basic c2U="), ""), Err(Refusal::Missing));
    assert_eq!(gate.admit(GET, None, None, ""), Err(Refusal::Missing));
}

#[test]
fn a_certificate_is_a_node_of_this_cluster_or_nothing() {
    let gate = gate();
    let caller = gate.admit(LINK, Some("spacegrid://shop/node/n-1"), None, "").expect("a node");
    assert_eq!((caller.role, &*caller.name), (Role::Node, "n-1"));
    assert_eq!(gate.admit(GET, Some("spacegrid://shop/node/n-1"), None, ""), Err(Refusal::Denied));
    let others =
        ["", "spacegrid://shop2/node/n-1", "spacegrid://shop/node/", "spacegrid://shop/node/a/b"];
    for uri in others {
        let token = Some(&b"Bearer sg1.b2.change"[..]);
        assert_eq!(gate.admit(PUT, Some(uri), token, ""), Err(Refusal::NoNode), "{uri}");
    }
}

#[test]
fn a_method_without_a_row_is_nobodys() {
    let gate = gate();
    let method = "/spacegrid.v1.Data/Format";
    assert_eq!(with_token(&gate, method, "sg1.b2.change"), Err(Refusal::NoSuchMethod));
}

#[test]
fn other_tokens_take_effect_at_once_and_a_damaged_text_changes_nothing() {
    let gate = gate();
    let before = gate.generation();
    let missing_word = gate.set_tokens("a1 board read 00\n").expect_err("five words");
    assert_eq!(missing_word.to_string(), "line 1: not five words: id, name, role, salt, hash");
    let twice = line("a1", "x", "read", "see") + &line("a1", "y", "admin", "see");
    assert!(gate.set_tokens(&twice).is_err());
    assert_eq!(gate.generation(), before);
    assert!(with_token(&gate, GET, "sg1.a1.see").is_ok());
    assert_eq!(gate.set_tokens("# nobody\n\n"), Ok(0));
    assert_ne!(gate.generation(), before);
    assert_eq!(with_token(&gate, GET, "sg1.a1.see"), Err(Refusal::Unknown));
}

#[test]
fn what_was_refused_is_told_once_and_without_the_token() {
    let gate = gate();
    let _ = with_token(&gate, PUT, "sg1.a1.see");
    let _ = with_token(&gate, GET, "sg1.a1.guess");
    let (lines, dropped) = gate.take_audit();
    assert_eq!(dropped, 0);
    assert_eq!(lines[0].caller, "board");
    assert_eq!(lines[1].refusal.code(), "bad_token");
    assert!(!format!("{lines:?}{gate:?}").contains("guess"));
    assert_eq!(gate.take_audit(), (Vec::new(), 0));
    for _ in 0..AUDIT_MAX + 3 {
        let _ = with_token(&gate, GET, "sg1.a1.guess");
    }
    assert_eq!(gate.take_audit().1, 3);
}

proptest! {
    #[test]
    fn hostile_text_never_panics_and_never_passes(
        text in "\\PC{0,200}", header in any::<Vec<u8>>(), uri in "\\PC{0,60}"
    ) {
        let gate = gate();
        let _ = Tokens::parse(&text);
        prop_assert!(gate.admit(GET, None, Some(&header), "").is_err());
        prop_assert!(gate.admit(GET, Some(&uri), None, "").is_err());
    }
}
