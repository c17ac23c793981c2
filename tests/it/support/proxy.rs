//! A host between strata and a registry, which does what a test says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use super::http::{Reply, Request};

/// What the proxy does with a request: the second value counts those that came here before.
type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A host that passes on what it is asked, but for what a test says, and remembers it all.
pub struct FaultProxy {
    port: u16,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

struct State {
    registry: u16,
    rules: Mutex<Vec<Rule>>,
    served: Mutex<Vec<Served>>,
    is_over: AtomicBool,
}

struct Rule {
    part: String,
    handled: usize,
    handler: Arc<Handler>,
}

/// A request that came, and what was answered.
#[derive(Debug, Clone)]
pub struct Served {
    pub method: String,
    pub path: String,
    /// What the client had to say who it is.
    pub authorization: Option<String>,
    /// Which bytes the client wanted.
    pub range: Option<String>,
    /// What kinds of document the client took.
    pub accept: Option<String>,
    pub status: u16,
    /// How many bytes of the body were sent.
    pub sent: usize,
}

impl FaultProxy {
    /// Starts a proxy before what listens at a port of this machine.
    pub fn start(registry: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (rules, served) = Default::default();
        let state = Arc::new(State { registry, rules, served, is_over: AtomicBool::new(false) });
        let serving = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.is_over.load(Ordering::Acquire) {
                    return;
                }
                let state = Arc::clone(&serving);
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { port, state, listener: Some(listener) }
    }

    /// Returns the proxy's host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, does this with requests that name `part` in their path. The last that fits is asked.
    pub fn at(&self, part: &str, handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> &Self {
        self.state.rules.lock().unwrap().push(Rule { part: part.to_owned(), handled: 0, handler: Arc::new(handler) });
        self
    }

    /// From now on, wants a token in each request, good for so many requests of one repository, and gives them out
    /// at `/token`.
    pub fn demand_tokens(&self, uses: usize) -> &Self {
        let left = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
        let given = Arc::clone(&left);
        let realm = format!("http://{}/token", self.host());
        self.at("/token", move |_, number| {
            let token = format!("token-{number}");
            given.lock().unwrap().insert(format!("Bearer {token}"), uses);
            Reply::json(200, &json!({ "token": token, "expires_in": 300 }))
        });
        self.at("/v2/", move |request, _| {
            let token = request.header("authorization").unwrap_or_default();
            if let Some(left @ 1..) = left.lock().unwrap().get_mut(token) {
                *left -= 1;
                return request.clone().without("authorization").forward();
            }
            challenge(&format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"{}\"", scope(&request.path)))
        })
    }

    /// From now on, gives lists of tags in pages of `size`, in order (distribution-spec, "Listing Tags"). The registry
    /// itself gives them whole.
    pub fn page_tags(&self, size: usize) -> &Self {
        self.at("/tags/list", move |request, _| {
            let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
            let after = query.split('&').find_map(|pair| pair.strip_prefix("last=")).unwrap_or_default();
            let whole: Value = serde_json::from_slice(&request.forward().body).unwrap();
            let mut tags: Vec<&str> = whole["tags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            tags.retain(|&tag| tag > after);
            tags.sort_unstable();
            let is_last = tags.len() <= size;
            tags.truncate(size);
            let reply = Reply::json(200, &json!({ "name": whole["name"], "tags": tags }));
            match tags.last().filter(|_| !is_last) {
                Some(last) => reply.with("link", format!("<{path}?last={last}&n={size}>; rel=\"next\"")),
                None => reply,
            }
        })
    }

    /// Returns what was asked so far, in order.
    pub fn served(&self) -> Vec<Served> {
        self.state.served.lock().unwrap().clone()
    }

    /// Returns the digests of the blobs that were asked for, in order, once for each time.
    pub fn blobs(&self) -> Vec<String> {
        let digest = |served: Served| served.path.split_once("/blobs/").map(|(_, digest)| digest.to_owned());
        self.served().into_iter().filter_map(digest).collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
        // It may wait for the next client.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        let ended = self.listener.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        // A client may leave at any time.
        let Ok(Some(request)) = Request::read(&stream, self.registry) else { return };
        let header = |name| request.header(name).map(str::to_owned);
        let number = {
            let mut served = self.served.lock().unwrap();
            served.push(Served {
                method: request.method.clone(),
                path: request.path.clone(),
                authorization: header("authorization"),
                range: header("range"),
                accept: header("accept"),
                status: 0,
                sent: 0,
            });
            served.len() - 1
        };
        let reply = self.answer(&request);
        self.served.lock().unwrap()[number].status = reply.status;
        let sent = reply.write(&mut stream, request.method == "HEAD");
        self.served.lock().unwrap()[number].sent = sent.unwrap_or(0);
    }

    fn answer(&self, request: &Request) -> Reply {
        let chosen = {
            let mut rules = self.rules.lock().unwrap();
            let rule = rules.iter_mut().rev().find(|rule| request.path.contains(&rule.part));
            rule.map(|rule| {
                rule.handled += 1;
                (Arc::clone(&rule.handler), rule.handled - 1)
            })
        };
        chosen.map_or_else(|| request.forward(), |(handler, number)| handler(request, number))
    }
}

/// Answers that the client has to say who it is, and how.
pub fn challenge(how: &str) -> Reply {
    let errors = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
    Reply::json(401, &errors).with("www-authenticate", how)
}

fn scope(path: &str) -> String {
    let repository = ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|part| path.split_once(part));
    let repository = repository.and_then(|(before, _)| before.strip_prefix("/v2/")).unwrap_or("none");
    format!("repository:{repository}:pull")
}
