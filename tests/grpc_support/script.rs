//! Ends that do what a test says: a scripted server on one connection, plain or with TLS, and our server that echoes.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use hivemind_worker::rpc::Waker;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::rpc::tls::{self, Roots, TrustedTime};
use hivemind_worker::sys::clock::boottime;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::{Folder, PATIENCE};

/// A server that accepts one connection and does this with it; the URL of it.
pub fn server(script: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        script(socket);
    });
    (url, thread)
}

/// A rustls server on one connection, and the client's configuration that trusts it.
pub fn tls_server(
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
    script: impl FnOnce(StreamOwned<ServerConnection, TcpStream>) + Send + 'static,
) -> (String, Arc<rustls::ClientConfig>, JoinHandle<()>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let folder = Folder::new();
    let roots = Roots::File(folder.write("root.pem", &certificate.pem()).into());
    let client = tls::client_config(&roots, None, &Arc::new(TrustedTime::default())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let session = ServerConnection::new(Arc::new(config)).unwrap();
    let (url, thread) = server(move |socket| script(StreamOwned::new(session, socket)));
    (url.replace("http://127.0.0.1", "https://localhost"), client, thread)
}

/// Runs our server until `client` is done; requests are echoed.
pub fn echo_while(mut server: Server, client: impl FnOnce(SocketAddr) + Send + 'static) {
    let (address, waker) = (server.local_addr().unwrap(), server.waker());
    let client = std::thread::spawn(move || {
        // Also when it fails, so that the failure is seen at once.
        let _wakes = WakesWhenDropped(waker);
        client(address);
    });
    loop {
        match server.next(boottime() + PATIENCE) {
            ServerEvent::Request { call, body, .. } => server.respond(call, Ok(body)),
            ServerEvent::Cancelled(_) => {}
            ServerEvent::Woken => break,
            ServerEvent::TimedOut => panic!("client is stuck"),
        }
    }
    client.join().unwrap();
}

struct WakesWhenDropped(Waker);

impl Drop for WakesWhenDropped {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// Reads and drops until the other end closes.
pub fn read_to_end(mut socket: TcpStream) {
    let mut chunk = [0; 4096];
    while socket.read(&mut chunk).is_ok_and(|n| n > 0) {}
}
