//! Roles, and what a role may do with data: a mask that every operation of a frame is checked against.

use crate::frame::Opcode;

/// What a caller is to the cluster. The numbers are bits of the table of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// A token that may look.
    Read = 1,
    /// A token that may also change data and call handlers.
    Write = 2,
    /// A token that may also operate the cluster.
    Admin = 4,
    /// Another node, by its certificate.
    Node = 8,
    /// Whoever reaches a port that only this machine reaches and that asks for no proof.
    Local = 16,
}

impl Role {
    /// The role of a token by its name.
    pub fn of_token(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::Read,
            "write" => Self::Write,
            "admin" => Self::Admin,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Node => "node",
            Self::Local => "local",
        }
    }

    /// Its bit in the table of methods.
    pub const fn bit(self) -> u8 {
        self as u8
    }

    /// What it may do with data.
    pub const fn rights(self) -> Rights {
        match self {
            Self::Read => Rights::READ,
            Self::Write | Self::Admin | Self::Node | Self::Local => Rights::ALL,
        }
    }
}

/// Rights to data: to nothing, to read, or to read and change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u8);

impl Rights {
    /// To nothing.
    pub const NONE: Self = Self(0);
    /// To read.
    pub const READ: Self = Self(1);
    /// To read, to write, and to call handlers: a handler may write.
    pub const ALL: Self = Self(3);

    /// The mask with these bits; bits without a meaning are dropped.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The mask as bits.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether an operation may be carried out.
    ///
    /// The match names every opcode, so that a new one can't be forgotten here.
    #[inline]
    pub const fn allow(self, opcode: Opcode) -> bool {
        let needed = match opcode {
            Opcode::Get | Opcode::Contains | Opcode::Size | Opcode::Scan => 1,
            Opcode::Put | Opcode::Delete | Opcode::Incr | Opcode::Invoke => 2,
        };
        self.0 & needed != 0
    }
}
