//! gRPC health: the `grpc.health.v1` status of the whole server and of each service.
//!
//! Invariant: the status is SERVING only while the server takes new calls and its probe has found no fatal
//! fault. Health over HTTP shows the same faults, and the others.

use std::convert::Infallible;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::flight_sql::FlightSqlService;
use crate::live::LiveQueryService;
use crate::probe::Health;

/// The empty name for the whole server, and the names of its services.
const SERVICES: [&str; 3] = ["", FlightServiceServer::<FlightSqlService>::NAME, LiveQueryService::NAME];

/// Sets the status of all services.
pub(crate) async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Updates the statuses, which start as SERVING, while it is polled: by `health` until `shutdown` fires, and
/// NOT_SERVING afterwards.
pub(crate) async fn follow(
    reporter: HealthReporter,
    mut health: Health,
    shutdown: CancellationToken,
) -> Infallible {
    let mut last = ServingStatus::Serving;
    loop {
        let status = if health.is_serving() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if status != last {
            set(&reporter, status).await;
            last = status;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = health.changed() => {}
        }
    }
    set(&reporter, ServingStatus::NotServing).await;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic_health::pb::health_server::Health as _;
    use tonic_health::pb::{HealthCheckRequest, health_check_response};
    use tonic_health::server::HealthService;

    use super::*;
    use crate::probe::{Fault, Part};

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
    async fn who_is_not_well_or_goes_down_does_not_serve() {
        use health_check_response::ServingStatus::{NotServing, Serving};
        for end in ["a fault", "shutdown"] {
            let (reporter, shutdown) = (HealthReporter::new(), CancellationToken::new());
            let service = HealthService::from_health_reporter(reporter.clone());
            let (found, health) = Health::for_test();
            set(&reporter, ServingStatus::Serving).await;
            let following = tokio::spawn(follow(reporter, health, shutdown.clone()));
            until(&service, Serving).await;
            if end == "shutdown" {
                shutdown.cancel();
            } else {
                found.send_replace(vec![Fault::Stuck(Part::Commits)]);
            }
            until(&service, NotServing).await;
            if end == "a fault" {
                found.send_replace(vec![Fault::Slow(Part::Commits), Fault::WritesAreRefused]);
                until(&service, Serving).await;
            }
            following.abort();
        }
    }
}
