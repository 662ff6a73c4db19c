//! From a flake to published generations: select machines, number, evaluate and compare, order in waves,
//! sign, draft, publish. `select`, `left_out`, `renewal`, `rollback::choice`, `rollout`, `terms` and `unread`
//! are pure.

pub mod difference;
pub mod drafts;
pub mod gating;
pub mod highest;
pub mod in_place;
pub mod inspect;
pub mod left_out;
pub mod numbers;
pub mod plan;
pub mod publish;
pub mod push;
pub mod renewal;
pub mod rollback;
pub mod rollout;
pub mod second;
pub mod select;
pub mod sign;
pub mod signed;
pub mod signing;
pub mod terms;
pub mod unread;
pub mod verify;
