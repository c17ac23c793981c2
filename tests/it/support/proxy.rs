//! A proxy between strata and a registry that can respond with faults.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::http::{Reply, Request};
use super::server::Server;

/// Returns the response to a request. The number is that of earlier requests that the same rule handled.
type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A proxy that records all requests, and forwards those that no rule of the test handles.
pub struct FaultProxy {
    server: Server,
    state: Arc<State>,
}

struct State {
    registry: u16,
    rules: Mutex<Vec<Rule>>,
    served: Mutex<Vec<Served>>,
}

struct Rule {
    part: String,
    handled: usize,
    handler: Arc<Handler>,
}

/// A received request and the response to it.
#[derive(Debug, Clone)]
pub struct Served {
    pub method: String,
    pub path: String,
    /// The header `authorization` of the request.
    pub authorization: Option<String>,
    /// The header `range` of the request.
    pub range: Option<String>,
    /// The header `accept` of the request.
    pub accept: Option<String>,
    pub status: u16,
    /// Number of bytes of the body that were sent.
    pub sent: usize,
}

impl FaultProxy {
    /// Starts a proxy for the server at a port of this machine.
    pub fn start(registry: u16) -> Self {
        let (rules, served) = Default::default();
        let state = Arc::new(State { registry, rules, served });
        let serving = Arc::clone(&state);
        Self { server: Server::tcp(move |stream| serving.serve(stream)), state }
    }

    /// Returns the proxy's host and port.
    pub fn host(&self) -> String {
        self.server.host()
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// From now on, requests whose path contains `part` are handled by `handler`. If several rules match, the last one counts.
    pub fn at(&self, part: &str, handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> &Self {
        self.state.rules.lock().unwrap().push(Rule { part: part.to_owned(), handled: 0, handler: Arc::new(handler) });
        self
    }

    /// From now on, each request needs a token, which is valid for `uses` requests. The proxy issues tokens
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

    /// From now on, lists of tags are sent in pages of `size`, in order (distribution-spec, "Listing Tags"). The registry
    /// itself does not split them.
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

    /// Returns all requests so far, in order.
    pub fn served(&self) -> Vec<Served> {
        self.state.served.lock().unwrap().clone()
    }

    /// Returns the digest of each request for a blob, in order.
    pub fn blobs(&self) -> Vec<String> {
        let digest = |served: Served| served.path.split_once("/blobs/").map(|(_, digest)| digest.to_owned());
        self.served().into_iter().filter_map(digest).collect()
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        // A client may close the connection at any time.
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

/// Creates the response 401, which tells the client how to authenticate.
pub fn challenge(how: &str) -> Reply {
    let errors = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
    Reply::json(401, &errors).with("www-authenticate", how)
}

fn scope(path: &str) -> String {
    let repository = ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|part| path.split_once(part));
    let repository = repository.and_then(|(before, _)| before.strip_prefix("/v2/")).unwrap_or("none");
    format!("repository:{repository}:pull")
}
