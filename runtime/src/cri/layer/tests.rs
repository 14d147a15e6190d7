//! The layer around a service of the test's making.

use std::convert::Infallible;

use super::*;
use crate::telemetry::tests::captured;

type Answer = Result<Response<Body>, Infallible>;

/// A service that does what it is told.
#[derive(Clone)]
struct Fake(Arc<dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync>);

impl Service<Request<Body>> for Fake {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        (self.0)()
    }
}

struct Rig {
    metrics: Arc<Metrics>,
    service: RpcService<Fake>,
}

impl Rig {
    fn new<F>(ready: bool, work: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (switch, metrics) = (Arc::new(Ready::default()), Arc::new(Metrics::new()));
        if ready {
            switch.set();
        }
        let slow = Duration::from_millis(20);
        let layer = RpcLayer::with_slow(switch, metrics.clone(), slow);
        let service = layer.layer(Fake(Arc::new(move || work().boxed())));
        Self { metrics, service }
    }

    fn request(&mut self, timeout: Option<&str>) -> BoxFuture<'static, Answer> {
        let mut request = Request::builder().uri("/runtime.v1.RuntimeService/Version");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        self.service.call(request.body(Body::empty()).unwrap())
    }

    async fn code(&mut self, timeout: Option<&str>) -> (Code, String) {
        let response = self.request(timeout).await.unwrap();
        match Status::from_header_map(response.headers()) {
            None => (Code::Ok, String::new()),
            Some(status) => (status.code(), status.message().to_owned()),
        }
    }

    fn counted(&self, code: &str) {
        let text = self.metrics.encode().unwrap();
        let line =
            format!("berth_rpc_duration_seconds_count{{method=\"Version\",code=\"{code}\"}} 1\n");
        assert!(text.contains(&line), "{line} is not in\n{text}");
        assert!(text.contains("berth_rpc_in_flight 0\n"), "{text}");
    }
}

async fn fine() -> Answer {
    Ok(Response::new(Body::empty()))
}

#[tokio::test]
async fn nothing_is_served_before_recovery_is_over() {
    let mut rig = Rig::new(false, || async { panic!("must not be called") });
    assert_eq!(rig.code(None).await.0, Code::Unavailable);
    rig.counted("Unavailable");
    let mut rig = Rig::new(true, fine);
    assert_eq!(rig.code(None).await.0, Code::Ok);
    rig.counted("OK");
}

#[tokio::test]
async fn a_panic_is_internal_and_counted_and_the_next_call_is_served() {
    let mut rig = Rig::new(true, || async { panic!("boom") });
    let (code, text) = rig.code(None).await;
    assert_eq!(code, Code::Internal);
    assert!(text.contains("boom"), "{text}");
    rig.counted("Internal");
    let text = rig.metrics.encode().unwrap();
    assert!(text.contains("berth_rpc_panics_total 1\n"), "{text}");
}

#[tokio::test]
async fn a_panic_before_the_first_await_is_caught_too() {
    let mut rig = Rig::new(true, || -> BoxFuture<'static, Answer> { panic!("early") });
    assert_eq!(rig.code(None).await.0, Code::Internal);
}

#[tokio::test]
async fn a_passed_deadline_is_deadline_exceeded() {
    let mut rig = Rig::new(true, || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        fine().await
    });
    assert_eq!(rig.code(Some("5m")).await.0, Code::DeadlineExceeded);
    rig.counted("DeadlineExceeded");
}

#[tokio::test]
async fn a_slow_call_is_still_answered() {
    let mut rig = Rig::new(true, || async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        fine().await
    });
    assert_eq!(rig.code(Some("1H")).await.0, Code::Ok);
}

#[tokio::test]
async fn an_abandoned_call_is_counted_as_cancelled() {
    let mut rig = Rig::new(true, std::future::pending);
    let call = rig.request(None);
    let left = tokio::time::timeout(Duration::from_millis(5), call).await;
    assert!(left.is_err());
    rig.counted("Cancelled");
}

#[tokio::test]
async fn an_answer_is_counted_until_the_last_of_its_bytes_is_gone() {
    let (held, used) = crate::container::Held::of(8);
    assert_eq!(used(), 16);
    let mut rig = Rig::new(true, move || {
        let held = held.clone();
        async move {
            let body = http_body_util::Full::new(Bytes::from_static(b"answer"));
            let mut response = Response::new(Body::new(body));
            response.extensions_mut().insert(held);
            Ok(response)
        }
    });
    let mut response = rig.request(None).await.unwrap();
    drop(rig);
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    let sent = frame.into_data().unwrap();
    // As a client that is slow to read leaves it.
    assert_eq!((&sent[..], used()), (&b"answer"[..], 16));
    drop(sent);
    assert_eq!(used(), 0);
}

#[tokio::test]
async fn an_error_of_the_handler_is_counted_by_its_code() {
    let mut rig = Rig::new(true, || async { Ok(Status::not_found("x").into_http()) });
    assert_eq!(rig.code(None).await, (Code::NotFound, "x".to_owned()));
    rig.counted("NotFound");
}

#[tokio::test]
async fn the_record_of_a_failure_has_the_id_whatever_the_filter() {
    let (subscriber, out) = captured("warn");
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut rig = Rig::new(true, || async {
        about_pod("abc");
        Ok(Status::unknown("x").into_http())
    });
    rig.code(None).await;
    let text = out.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [
        "rpc.id=1",
        "Version",
        "abc",
        "Unknown",
        "the call failed: x",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn timeouts_are_read_as_grpc_writes_them() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        timeout(&headers)
    };
    assert_eq!(read("1S"), Some(Duration::from_secs(1)));
    assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
    assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
    assert_eq!(read("5u"), Some(Duration::from_micros(5)));
    for wrong in ["", "S", "1", "-1S", "123456789S", "1x", "1.5S"] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
    assert_eq!(timeout(&HeaderMap::new()), None);
}
