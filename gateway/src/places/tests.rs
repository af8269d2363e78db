use super::*;
use futures_util::FutureExt;

const BOUNDS: Bounds = Bounds {
    total: 6,
    per_network: 4,
    evicts_serving: false,
};

fn network(n: u8) -> Network {
    Network::of([192, 0, 2, n].into())
}

fn claim(places: &Arc<Places>, n: u8) -> Result<ClaimedPlace, NoPlace> {
    places.claim(network(n), false, BOUNDS)
}

fn is_evicted(place: &ClaimedPlace) -> bool {
    place.evicted().now_or_never().is_some()
}

#[test]
fn a_crowd_pushes_out_its_own_oldest_and_nobody_else() {
    let places = Arc::new(Places::default());
    let other = claim(&places, 2).unwrap();
    let crowd: Vec<ClaimedPlace> = (0..20).map(|_| claim(&places, 1).unwrap()).collect();
    assert!(!is_evicted(&other));
    assert_eq!(crowd.iter().filter(|place| is_evicted(place)).count(), 16);
    assert!(crowd[..16].iter().all(is_evicted), "the oldest go");
    assert_eq!(places.held(), 5);
}

#[test]
fn a_full_table_makes_room_among_those_who_hold_most() {
    let places = Arc::new(Places::default());
    let small = claim(&places, 2).unwrap();
    let large: Vec<ClaimedPlace> = (0..4).map(|_| claim(&places, 1).unwrap()).collect();
    let medium = claim(&places, 3).unwrap();
    let newcomer = claim(&places, 4).unwrap();
    assert!(is_evicted(&large[0]) && !is_evicted(&large[1]));
    assert!(!is_evicted(&small) && !is_evicted(&medium) && !is_evicted(&newcomer));
    assert_eq!(places.held(), 6);
}

#[test]
fn idle_connections_go_before_unfinished_requests_and_answers_stay() {
    let places = Arc::new(Places::default());
    let of_phase = |phase| {
        let place = claim(&places, 1).unwrap();
        place.set(phase);
        place
    };
    let unfinished = of_phase(Phase::Unfinished);
    let serving = of_phase(Phase::Serving);
    let idle = [of_phase(Phase::Idle), of_phase(Phase::Idle)];
    // The one that was idle for longer has had a request since.
    idle[0].set(Phase::Serving);
    idle[0].set(Phase::Idle);
    let mut newcomers = vec![claim(&places, 1).unwrap()];
    assert!(is_evicted(&idle[1]) && !is_evicted(&idle[0]));
    newcomers.push(claim(&places, 1).unwrap());
    assert!(is_evicted(&idle[0]) && !is_evicted(&unfinished));
    newcomers.push(claim(&places, 1).unwrap());
    assert!(is_evicted(&unfinished) && !is_evicted(&serving));
    for place in &newcomers {
        place.set(Phase::Serving);
    }
    assert_eq!(claim(&places, 1).unwrap_err(), NoPlace::NetworkFull);
    assert!(places.claim(network(1), true, BOUNDS).is_ok());
}

#[test]
fn a_trusted_proxy_has_no_bound_of_its_own_and_goes_last() {
    let places = Arc::new(Places::default());
    let proxy: Vec<ClaimedPlace> = (0..5)
        .map(|_| places.claim(network(9), true, BOUNDS).unwrap())
        .collect();
    let stranger = claim(&places, 1).unwrap();
    let _next = claim(&places, 2).unwrap();
    assert!(is_evicted(&stranger) && !proxy.iter().any(is_evicted));
    let _more: Vec<ClaimedPlace> = (3..5).map(|n| claim(&places, n).unwrap()).collect();
    assert!(!proxy.iter().any(is_evicted));
}

#[test]
fn with_nothing_to_give_up_there_is_no_place_unless_answers_go_too() {
    let places = Arc::new(Places::default());
    let serving: Vec<ClaimedPlace> = (1..=6)
        .map(|n| {
            let place = claim(&places, n).unwrap();
            place.set(Phase::Serving);
            place
        })
        .collect();
    assert_eq!(claim(&places, 7).unwrap_err(), NoPlace::Full);
    let bounds = Bounds {
        evicts_serving: true,
        ..BOUNDS
    };
    let newcomer = places.claim(network(7), false, bounds).unwrap();
    assert_eq!(serving.iter().filter(|place| is_evicted(place)).count(), 1);
    drop((serving, newcomer));
    assert_eq!(places.held(), 0);
    assert!(places.table.lock().holders.is_empty() && places.table.lock().entries.is_empty());
}

#[test]
fn answers_of_a_crowd_go_for_those_who_hold_less_and_never_for_its_own() {
    let places = Arc::new(Places::default());
    let serving = |n, is_trusted| {
        let place = places.claim(network(n), is_trusted, BOUNDS).unwrap();
        place.set(Phase::Serving);
        place
    };
    let crowd: Vec<ClaimedPlace> = (0..4).map(|_| serving(1, false)).collect();
    let others = [serving(2, false), serving(2, false)];
    assert_eq!(claim(&places, 1).unwrap_err(), NoPlace::NetworkFull);
    let newcomer = claim(&places, 3).unwrap();
    assert!(is_evicted(&crowd[0]) && !others.iter().any(is_evicted));
    drop((crowd, others, newcomer));

    let _proxy: Vec<ClaimedPlace> = (0..6).map(|_| serving(9, true)).collect();
    assert_eq!(claim(&places, 3).unwrap_err(), NoPlace::Full);
}

#[test]
fn a_place_moves_to_the_network_that_a_proxy_names() {
    let places = Arc::new(Places::default());
    let crowd: Vec<ClaimedPlace> = (0..4).map(|_| claim(&places, 1).unwrap()).collect();
    let place = places.claim(network(9), true, BOUNDS).unwrap();
    place.move_to(network(1), false, BOUNDS).unwrap();
    assert!(is_evicted(&crowd[0]) && !is_evicted(&place));
    for place in crowd.iter().chain([&place]) {
        place.set(Phase::Serving);
    }
    let place = places.claim(network(9), true, BOUNDS).unwrap();
    assert_eq!(
        place.move_to(network(1), false, BOUNDS),
        Err(NoPlace::NetworkFull)
    );
    drop((crowd, place));
}

#[tokio::test]
async fn who_waits_is_woken_when_the_place_goes() {
    let places = Arc::new(Places::default());
    let place = claim(&places, 1).unwrap();
    let waiting = tokio::spawn(async move { place.evicted().await });
    tokio::task::yield_now().await;
    let _crowd: Vec<ClaimedPlace> = (0..4).map(|_| claim(&places, 1).unwrap()).collect();
    waiting.await.unwrap();
    assert_eq!(places.held(), 4);
}
