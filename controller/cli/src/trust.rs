//! The roots that this operator trusts: following them, who holds which role, and putting a new one in force.

pub mod change;
pub mod holders;
pub mod kinds;
pub mod roots;
pub mod understands;
