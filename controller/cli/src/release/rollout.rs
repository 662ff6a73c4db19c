//! Rollouts: from the order as people write it to the plan that is signed. Pure, apart from reading a file.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `written` | the order in a flake or a file, checked with the place of each mistake |
//! | `duration` | `2h`, `1h30m` |
//! | `order` | the seeded order of machines |
//! | `work` | which machine is in which wave, who vouches, and what percentages come to |
//! | `told` | a plan as it is shown before somebody signs it |
//! | `compared` | how two plans of one order differ |
//! | `skip` | the plan that takes another one's place and leaves out its blocking wave |
//! | `undo` | the machines that go back |

pub mod compared;
pub mod duration;
pub mod order;
pub mod skip;
pub mod told;
pub mod undo;
pub mod work;
pub mod written;
