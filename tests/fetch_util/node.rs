//! A node without a coordinator, whose part the test takes, on the real engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use hivemind_worker::docker::{Docker, DockerHost, NodeTimeouts};
use hivemind_worker::fetch::Fetcher;
use hivemind_worker::node::net::NetworkPolicy;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{Desired, Marks, TaskNews};
use hivemind_worker::node::record::{EventKind, FinalReport};
use hivemind_worker::node::resources::DiskWay;
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};
use hivemind_worker::sandbox::{
    self, Beginning, Context, EgressGuard, EgressSettings, Identity, Stock, StockSettings, TaskHandle, Volumes,
};
use hivemind_worker::store::{BundleLimits, Bundles, Store, StoreConfig, StoreEvent, Write as StoreWrite};

pub const PATIENCE: Duration = Duration::from_secs(120);
fn boottime() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1_000)
}

/// A node without a coordinator: the test takes its part.
pub struct Node {
    pub dir: PathBuf,
    pub context: Arc<Context>,
    durable: Receiver<StoreEvent>,
    tickets: AtomicU64,
}

pub struct Running<'a> {
    node: &'a Node,
    spec: TaskSpec,
    pub handle: TaskHandle,
    pub news: Receiver<TaskNews>,
}

impl Node {
    pub fn new(name: &str, fetcher: Fetcher) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-inputs-{name}-{}", std::process::id()));
        let (sender, durable) = unbounded();
        let notify = Box::new(move |event| sender.send(event).unwrap_or_default());
        let (store, _) = Store::open(&dir, StoreConfig::default(), notify).unwrap();
        let docker = Docker::new(DockerHost::default(), NodeTimeouts::default());
        docker.ping().expect("these tests need a Docker engine: scripts/test.sh starts one");
        let identity = Identity::new("inputs-test", dir.as_os_str().as_encoded_bytes());
        let boot_id = "boot".to_owned();
        let quick_docker = docker.clone();
        let bundles = Arc::new(Bundles::open(&dir, BundleLimits::default()));
        let pull_limit = Duration::from_secs(600);
        let book = Arc::new(sandbox::Book::open(store.clone()));
        let images = sandbox::Images::new(sandbox::Registries::default(), book);
        let volumes = Volumes::new(DiskWay::Watch, &dir, identity.clone()).unwrap();
        let egress = EgressSettings::new(NetworkPolicy::default(), Vec::new());
        let egress = EgressGuard::start((&docker, &docker), identity.clone(), egress, &[]).unwrap().egress();
        let context = Context {
            egress,
            quick_docker,
            docker,
            fetcher,
            bundles,
            store,
            identity,
            clock: boottime,
            boot_id,
            stock: Arc::new(Stock::open(&dir, StockSettings::default())),
            pull_limit,
            images,
            volumes: Arc::new(volumes),
        };
        Self { dir, context: Arc::new(context), durable, tickets: AtomicU64::new(1) }
    }

    pub fn commit(&self, write: StoreWrite) {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.context.store.commit(ticket, vec![write]);
        while self.durable.recv_timeout(PATIENCE).unwrap() != StoreEvent::Durable(ticket) {}
    }

    pub fn start(&self, offer: &Offer) -> Running<'_> {
        let spec = TaskSpec::check(offer, &SpecDefaults::default()).unwrap();
        self.commit(StoreWrite::Take { spec: Box::new(spec.clone()), inputs: offer.inputs.clone() });
        let (sender, news) = unbounded();
        let teller = Arc::new(move |told| sender.send(told).unwrap_or_default());
        let context = Arc::clone(&self.context);
        let handle = sandbox::start(context, spec.clone(), Marks::default(), Beginning::Fresh, teller).unwrap();
        Running { node: self, spec, handle, news }
    }

    pub fn run(&self, offer: &Offer) -> FinalReport {
        self.start(offer).finish()
    }

    pub fn left_overs(&self) -> usize {
        let (filter, docker) = (self.context.identity.filter(), &self.context.docker);
        docker.list_containers(&[&filter]).unwrap().len() + docker.list_volumes(&[&filter]).unwrap().len()
    }

    /// Archives that were fetched and are still there.
    pub fn fetched(&self) -> usize {
        let folders = std::fs::read_dir(self.dir.join("spool")).unwrap().map(|entry| entry.unwrap().path());
        folders.filter(|folder| folder.join("inputs.fetched").exists()).count()
    }
}

impl Running<'_> {
    pub fn wait_for(&self, wanted: impl Fn(&TaskNews) -> bool) -> TaskNews {
        loop {
            let news = self.news.recv_timeout(PATIENCE).unwrap();
            if wanted(&news) {
                return news;
            }
        }
    }

    pub fn finish(self) -> FinalReport {
        let TaskNews::Finished(report) = self.wait_for(|news| matches!(news, TaskNews::Finished(_))) else {
            unreachable!()
        };
        let kind = EventKind::Final(report.clone());
        self.node.commit(StoreWrite::Event { key: self.spec.key.clone(), time_ms: 0, kind });
        self.handle.set_desired(Desired { may_clean: true, ..Desired::default() });
        self.wait_for(|news| matches!(news, TaskNews::Cleaned(None)));
        self.handle.join();
        *report
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (filter, docker) = (self.context.identity.filter(), &self.context.docker);
        for container in docker.list_containers(&[&filter]).unwrap_or_default() {
            let _ = docker.remove_container(&container.id);
        }
        for volume in docker.list_volumes(&[&filter]).unwrap_or_default() {
            let _ = docker.remove_volume(&volume.name);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
