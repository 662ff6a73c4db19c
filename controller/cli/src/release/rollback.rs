//! Back to older generations, each signed again as a new one. It needs no flake: what was signed is in the
//! controller's history, and what machines build it from is in its cache.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `choice` | which generation a machine goes back to, checked, and the new one that it becomes; pure |
//! | `way` | one machine's way back: its documents from the controller, and how it is shown |
//! | `performed` | all of it for several machines: shown, asked, signed, published, followed |

pub mod choice;
pub mod performed;
pub mod way;
