//! A task's container: its create body, the threads that run it, collection and adoption.
//!
//! | file | has |
//! | --- | --- |
//! | `naming`, `body` | names, labels and the create body: pure |
//! | `inputs`, `collect`, `pattern` | archives in and out, entry by entry, and which files are wanted |
//! | `remote` | archives that are fetched first |
//! | `stock`, `dependencies`, `packages` | what the node has for tasks, files of earlier ones, and what pip installs |
//! | `image` | what of an image has a say: pure |
//! | `images` | what all tasks share of images |
//! | `readback`, `inside`, `mounts` | whether a started container is what was asked for: by the engine's word and the kernel's |
//! | `task` | the thread of one attempt, and the order of its steps |
//! | `prepare`, `run`, `finish` | the steps: to a container, while it runs, after its end |
//! | `bundle` | what is kept of an attempt that failed |
//! | `resolve` | which image a task runs in: looked up once |
//! | `pull`, `pulls` | pulling an image, and when that stands still; pulls that tasks share |
//! | `book` | images that this node has pulled, and may remove |
//! | `registries` | credentials for registries that the owner names |
//! | `stop` | ending and freezing a running container |
//! | `step` | long engine calls that can be released |
//! | `capture` | the output thread |
//! | `adopt`, `gap`, `settle` | taking over after a restart, and the output of the time between |
//! | `network` | a task's own network, for tasks with egress |
//! | `guard`, `nft`, `probe` | the firewall's rules for these networks, kept and tried |
//! | `firewall`, `subnet` | the rules' text, and which addresses a network gets: pure |
//! | `disk` | the watch over a task's work folder |
//! | `volume`, `bounded` | work folders that are bounded by their size, and what a task has of them |
//! | `ext4`, `losetup` | their file system: pure; the programs that make them |
//! | `meter`, `gauge` | what a container uses, and when that is read |
//! | `kills`, `oom` | the kernel's count of processes killed for memory, and its log, where the engine has missed it |
//! | `shim` | whether the engine's own process for a container ended before it |
//! | `verdict` | from the engine's words to an outcome: pure |
//! | `engine` | the engine as a whole, and its events |
//! | `sweep`, `collector` | what belongs to no attempt, and when it is collected |

mod adopt;
mod body;
mod book;
mod bounded;
mod bundle;
mod capture;
mod collect;
mod collector;
mod dependencies;
mod disk;
mod engine;
mod ext4;
mod finish;
mod firewall;
mod gap;
mod gauge;
mod guard;
mod image;
mod images;
mod inputs;
mod inside;
#[cfg(test)]
mod inside_tests;
mod kills;
mod losetup;
mod meter;
mod mounts;
mod naming;
mod network;
mod nft;
mod oom;
mod packages;
mod pattern;
mod prepare;
mod probe;
mod pull;
mod pulls;
mod readback;
mod registries;
mod remote;
mod resolve;
mod run;
mod settle;
mod shim;
mod step;
mod stock;
mod stop;
mod subnet;
mod sweep;
mod task;
mod verdict;
mod volume;

pub use body::TASK_USER;
pub use book::Book;
pub use collector::{Ask, Collector, Parts as CollectorParts, asks};
pub use engine::{EngineNews, EngineWatch, Hooks, can_hold};
pub use guard::{Egress, EgressGuard, EgressSettings, could_guard};
pub use images::Images;
pub use inputs::{InputError, Starter, rewrite as rewrite_inputs};
pub use naming::{Identity, LABEL_KEY, LABEL_NODE};
pub use registries::Registries;
pub use stock::{Index, Stock, StockSettings};
pub use task::{Beginning, Context, TaskHandle, Teller, start};
pub use volume::{Volumes, check_machine as check_volumes};
