//! A task's container: its create body, the threads that run it, collection and adoption.
//!
//! | file | has |
//! | --- | --- |
//! | `naming`, `body` | names, labels and the create body: pure |
//! | `inputs`, `collect`, `pattern` | archives in and out, entry by entry, and which files are wanted |
//! | `task` | the thread of one attempt, and the order of its steps |
//! | `prepare`, `run`, `finish` | the steps: to a container, while it runs, after its end |
//! | `stop` | ending and freezing a running container |
//! | `step` | long engine calls that can be released |
//! | `capture` | the output thread |
//! | `adopt`, `gap` | taking over after a restart, and the output of the time between |
//! | `network` | a task's own network, for tasks with egress |
//! | `guard`, `nft`, `probe` | the firewall's rules for these networks, kept and tried |
//! | `firewall`, `subnet` | the rules' text, and which addresses a network gets: pure |
//! | `disk` | the watch over a task's work folder |
//! | `meter`, `gauge` | what a container uses, and when that is read |
//! | `verdict` | from the engine's words to an outcome: pure |
//! | `engine` | the engine as a whole, its events, what is left over |

mod adopt;
mod body;
mod capture;
mod collect;
mod disk;
mod engine;
mod finish;
mod firewall;
mod gap;
mod gauge;
mod guard;
mod inputs;
mod meter;
mod naming;
mod network;
mod nft;
mod pattern;
mod prepare;
mod probe;
mod run;
mod step;
mod stop;
mod subnet;
mod task;
mod verdict;

pub use body::TASK_USER;
pub use engine::{EngineNews, EngineWatch, Hooks, can_hold};
pub use guard::{Egress, EgressGuard, EgressSettings};
pub use naming::{Identity, LABEL_KEY, LABEL_NODE};
pub use task::{Beginning, Context, TaskHandle, Teller, start};
