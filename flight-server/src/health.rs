//! gRPC health: the `grpc.health.v1` status of the whole server and of each service.
//!
//! Invariant: the status is SERVING only while the server accepts writes and new calls. Health over HTTP has
//! the same condition for writes.

use std::convert::Infallible;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::flight_sql::FlightSqlService;
use crate::live::LiveQueryService;

/// How often the acceptance of writes is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The empty name for the whole server, and the names of its services.
const SERVICES: [&str; 3] = ["", FlightServiceServer::<FlightSqlService>::NAME, LiveQueryService::NAME];

/// Sets the status of all services.
pub(crate) async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Updates the statuses, which start as SERVING, while it is polled: by `accepts_writes` until `shutdown`
/// fires, and NOT_SERVING afterwards.
pub(crate) async fn follow(
    reporter: HealthReporter,
    accepts_writes: impl Fn() -> bool,
    shutdown: CancellationToken,
) -> Infallible {
    let mut ticks = interval(CHECK_INTERVAL);
    let mut last = ServingStatus::Serving;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let status = if accepts_writes() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if status != last {
            set(&reporter, status).await;
            last = status;
        }
    }
    set(&reporter, ServingStatus::NotServing).await;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tonic::Request;
    use tonic_health::pb::health_server::Health;
    use tonic_health::pb::{HealthCheckRequest, health_check_response};
    use tonic_health::server::HealthService;

    use super::*;

    async fn until(service: &HealthService, expected: health_check_response::ServingStatus) {
        for name in SERVICES {
            loop {
                let request = HealthCheckRequest { service: name.to_owned() };
                let answer = service.check(Request::new(request)).await.unwrap().into_inner();
                if answer.status() == expected {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn who_cannot_write_or_goes_down_does_not_serve() {
        use health_check_response::ServingStatus::{NotServing, Serving};
        static ACCEPTS_WRITES: AtomicBool = AtomicBool::new(true);
        for end in ["a failed write", "shutdown"] {
            ACCEPTS_WRITES.store(true, Ordering::Relaxed);
            let (reporter, shutdown) = (HealthReporter::new(), CancellationToken::new());
            let service = HealthService::from_health_reporter(reporter.clone());
            set(&reporter, ServingStatus::Serving).await;
            let following =
                tokio::spawn(follow(reporter, || ACCEPTS_WRITES.load(Ordering::Relaxed), shutdown.clone()));
            until(&service, Serving).await;
            if end == "shutdown" {
                shutdown.cancel()
            } else {
                ACCEPTS_WRITES.store(false, Ordering::Relaxed)
            }
            until(&service, NotServing).await;
            following.abort();
        }
    }
}
