package worker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/workflows"
)

// starter takes the place of Temporal where only the starts of workflows matter: it notes them.
type starter struct {
	client.Client
	mu      sync.Mutex
	started []string // workflow IDs
	local   int      // how many of them were to make their first attempt in their first task
}

func (s *starter) ExecuteWorkflow(_ context.Context, options client.StartWorkflowOptions, _ any, args ...any) (client.WorkflowRun, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = append(s.started, options.ID)
	if in, single := args[0].(workflows.DeliverInput); single && in.Local {
		s.local++
	}
	return nil, nil
}

// count returns how many workflows with such an ID were started.
func (s *starter) count(prefix string) (n int) {
	for _, workflowID := range s.started {
		if strings.HasPrefix(workflowID, prefix) {
			n++
		}
	}
	return n
}

// dispatchTest is a dispatcher on a real queue, in a bubble like leaseTest's. Whatever it starts is recorded at once.
type dispatchTest struct {
	*Dispatcher
	worker          uuid.UUID
	starter         *starter
	registry        *prometheus.Registry
	tenant, log     uuid.UUID
	claimedInAll    int
	mostAtOnce      int // deliveries in flight after a round
	wentOverToBatch bool
}

// dispatching runs f with a dispatcher of so many places. IDs made in the bubble carry the day outside, because they never
// go back behind those that were made before.
func dispatching(t *testing.T, limit int, f func(t *testing.T, d *dispatchTest)) {
	t.Helper()
	url := postgrestest.New(t)
	owner := postgrestest.Pool(t, url, postgres.Owner)
	log, err := admin.CreateLog(t.Context(), owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
	require.NoError(t, err)
	tenant, err := admin.CreateTenant(t.Context(), owner, "Example Bank", log.ID)
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		db, err := postgres.Open(url, postgres.Engine, 4)
		require.NoError(t, err)
		defer db.Close()
		d := &dispatchTest{starter: &starter{}, registry: prometheus.NewRegistry(), worker: id.New(), tenant: tenant, log: log.ID}
		d.Dispatcher = &Dispatcher{
			db: db, temporal: d.starter, latencies: activities.NewLatencies(), log: zap.NewNop(), limit: limit,
			metrics: newMetrics(d.registry), wake: make(chan struct{}, 1), inFlight: map[uuid.UUID]*flight{},
		}
		d.places = places{permits: alone(d.worker), latencies: d.latencies}
		require.NoError(t, postgres.AddWorker(t.Context(), db, d.worker, "test"))
		d.exec(t, "update workers set alive_until = now() + interval '1 hour'")
		f(t, d)
	})
}

func (d *dispatchTest) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	owner, err := postgres.Open(d.db.Config().ConnString(), postgres.Owner, 1)
	require.NoError(t, err)
	defer owner.Close()
	_, err = owner.Exec(context.Background(), sql, args...)
	require.NoError(t, err)
}

// alone are the permits of a worker that knows of no other.
func alone(worker uuid.UUID) *activities.Permits {
	permits := activities.NewPermits(400, func() (uuid.UUID, bool) { return worker, true })
	permits.Divide(activities.Division{Worker: worker, Joined: time.Now().Add(-time.Hour), Workers: []activities.Sharer{{ID: worker}}})
	return permits
}

// accept stores n webhooks that are due to a new destination of a lane. Limit 0 is none; then it is known to answer quickly.
func (d *dispatchTest) accept(t *testing.T, n int, lane postgres.Lane, limit int) (destination uuid.UUID) {
	t.Helper()
	endpoint, destination := id.New(), id.New()
	d.exec(t, `insert into endpoints (id, tenant_id, name, verification, duplicates, lane) values ($1, $2, 'in', '{"scheme":"none"}', '{}', $3)`,
		endpoint, d.tenant, string(lane))
	d.exec(t, `insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule, max_concurrency)
		values ($1, $2, $3, 'https://example.com/in', false, 5000, '{}', nullif($4, 0))`, destination, d.tenant, endpoint, limit)
	var rows []*postgres.Acceptance
	for range n {
		event := id.New()
		rows = append(rows, &postgres.Acceptance{
			EventID: event, TenantID: d.tenant, EndpointID: endpoint, LogID: d.log, ContentType: "application/json", Headers: []byte{}, Body: []byte{},
			PayloadHash: make([]byte, 32), Salt: make([]byte, 32), Secret: make([]byte, 32),
			Deliveries: []postgres.NewDelivery{{ID: id.At(event), DestinationID: destination}},
		})
	}
	_, err := postgres.Accept(t.Context(), d.db, rows)
	require.NoError(t, err)
	if limit == 0 {
		d.latencies.Add(destination, 10*time.Millisecond)
	}
	return destination
}

// rounds lets the dispatcher look at the queue n times, each pollEvery after the last.
func (d *dispatchTest) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		require.NoError(t, d.claim(t.Context(), d.worker))
		d.starts.Wait()
		d.recordAll()
		d.wentOverToBatch = d.wentOverToBatch || d.lanes.batches
		pass(pollEvery)
	}
}

// recordAll frees the places of all that is in flight.
func (d *dispatchTest) recordAll() {
	var deliveries []uuid.UUID
	for delivery := range d.inFlight {
		deliveries = append(deliveries, delivery)
	}
	d.claimedInAll, d.mostAtOnce = d.claimedInAll+len(deliveries), max(d.mostAtOnce, len(deliveries))
	for _, delivery := range deliveries {
		d.Recorded(delivery)
	}
}

// metric reads a metric of a worker as it is scraped: the only one of its name, or that with this label.
func metric(t *testing.T, registry *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it is one of them
			}
		}
	}
	return 0
}

// carried counts the deliveries that were claimed for a lane.
func (d *dispatchTest) carried(t *testing.T, lane postgres.Lane) int {
	t.Helper()
	return int(metric(t, d.registry, "kapsel_deliveries_claimed_total", string(lane)))
}

func (d *dispatchTest) batching(t *testing.T) float64 {
	t.Helper()
	return metric(t, d.registry, "kapsel_dispatcher_batching", "")
}

// In a backlog auto goes over to batches, and back when it is over; the metrics and the deliveries say so.
func TestDispatcherCarriesABacklogInBatches(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		d.accept(t, 3000, postgres.LaneAuto, 0)
		d.rounds(t, 4) // longer than backlogAfter
		require.Equal(t, 1.0, d.batching(t))
		d.rounds(t, 4)
		require.Equal(t, 3000, d.claimedInAll)
		single, batched := d.carried(t, postgres.LaneWorkflow), d.carried(t, postgres.LaneBatch)
		require.Equal(t, 3000, single+batched)
		require.LessOrEqual(t, single, 4*50)
		require.LessOrEqual(t, d.mostAtOnce, mostBatched+50)
		require.Equal(t, single, d.starter.count("deliver/"))
		require.Less(t, d.starter.count("batch/"), 10)
		require.Zero(t, d.batched)
		require.Empty(t, d.inFlight)
		for lane, n := range map[postgres.Lane]int{postgres.LaneWorkflow: single, postgres.LaneBatch: batched} {
			var stored int
			require.NoError(t, d.db.QueryRow(t.Context(), "select count(*) from deliveries where lane = $1", string(lane)).Scan(&stored))
			require.Equal(t, n, stored)
		}

		d.rounds(t, int(calmAfter/pollEvery)+2)
		require.Zero(t, d.batching(t))
		d.accept(t, 1, postgres.LaneAuto, 0)
		d.rounds(t, 1)
		require.Equal(t, single+1, d.carried(t, postgres.LaneWorkflow))
	})
}

// What fails in a backlog gets a workflow of its own as far as the budget goes, and is carried in batches otherwise.
func TestDispatcherStartsOnlySoManyWorkflowsForWhatFailed(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		d.lanes = *inBatches(t)
		d.accept(t, 3000, postgres.LaneAuto, 0)
		d.exec(t, "update deliveries set next_attempt = 2")
		d.exec(t, "update delivery_queue set attempt = 2")
		d.rounds(t, 5)
		require.Equal(t, 3000, d.claimedInAll)
		require.GreaterOrEqual(t, d.starter.count("deliver/"), startsPerSecond)
		require.LessOrEqual(t, d.starter.count("deliver/"), 2*startsPerSecond+startsPerSecond/2, "at the start, and for 1.25 s")
		require.Equal(t, 3000, d.carried(t, postgres.LaneBatch)+d.carried(t, postgres.LaneWorkflow))
	})
}

// Slow destinations would only fill a batch with what it puts back.
func TestDispatcherKeepsSlowDestinationsOutOfBatches(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		d.lanes = *inBatches(t)
		slow := d.accept(t, 500, postgres.LaneAuto, 0)
		d.accept(t, 500, postgres.LaneAuto, 0)
		d.latencies.Add(slow, fastEnough)
		d.rounds(t, 4)
		require.Equal(t, 500, d.carried(t, postgres.LaneBatch))
		require.Equal(t, d.starter.count("deliver/"), d.carried(t, postgres.LaneWorkflow))
		require.GreaterOrEqual(t, d.carried(t, postgres.LaneWorkflow), startsPerSecond)
		require.LessOrEqual(t, d.carried(t, postgres.LaneWorkflow), 2*startsPerSecond)
	})
}

// The budget is for what would be batched otherwise: an endpoint of lane workflow has all places, whatever its backlog.
func TestDispatcherDoesNotSlowLaneWorkflow(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		d.accept(t, 1000, postgres.LaneWorkflow, 0)
		d.rounds(t, 20)
		require.Equal(t, 1000, d.claimedInAll, "50 places, 20 times")
		require.Equal(t, 1000, d.starter.count("deliver/"))
		require.False(t, d.wentOverToBatch, "nothing could be batched")
	})
}

// The first delivery of lane batch waits for nobody; those that follow gather.
func TestDispatcherLetsABatchGather(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		for _, claimed := range []int{1, 1, 1} {
			d.accept(t, 1, postgres.LaneBatch, 0)
			require.NoError(t, d.claim(t.Context(), d.worker))
			require.Equal(t, claimed, d.carried(t, postgres.LaneBatch))
		}
		pass(gatherFor)
		require.NoError(t, d.claim(t.Context(), d.worker))
		d.starts.Wait()
		require.Equal(t, 3, d.carried(t, postgres.LaneBatch))
		require.Equal(t, 2, d.starter.count("batch/"))
	})
}

// An endpoint of lane batch is carried so from its first delivery on, and changes nothing for the others.
func TestDispatcherBatchesLaneBatchAlways(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		d.accept(t, 1, postgres.LaneBatch, 0)
		d.rounds(t, 1)
		require.Equal(t, 1, d.carried(t, postgres.LaneBatch))
		d.accept(t, 1500, postgres.LaneBatch, 0)
		d.accept(t, 20, postgres.LaneAuto, 0)
		d.rounds(t, 4)
		require.Equal(t, 1501, d.carried(t, postgres.LaneBatch))
		require.Equal(t, 20, d.carried(t, postgres.LaneWorkflow))
		require.False(t, d.wentOverToBatch)
	})
}

func TestDispatcherKeepsToADestinationsLimitInEveryLane(t *testing.T) {
	for _, lane := range []postgres.Lane{postgres.LaneWorkflow, postgres.LaneBatch} {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
				d.accept(t, 50, lane, 7)
				for range 3 {
					require.NoError(t, d.claim(t.Context(), d.worker))
					d.starts.Wait()
					require.Len(t, d.inFlight, 7)
					pass(pollEvery)
				}
				d.rounds(t, 10)
				require.Equal(t, 50, d.claimedInAll)
				require.Equal(t, 7, d.mostAtOnce)
			})
		})
	}
}

// When a worker takes over what another has claimed, the deliveries of a batch start it again under its name, and those
// that got a workflow of their own start that.
func TestDispatcherCarriesOnWhatItTakesOver(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		destination := d.accept(t, 20, postgres.LaneBatch, 0)
		d.exec(t, "update deliveries set next_attempt = 2")
		d.exec(t, "update delivery_queue set attempt = 2")
		dead, claim := id.New(), id.New()
		require.NoError(t, postgres.AddWorker(t.Context(), d.db, dead, "test"))
		_, err := postgres.Claim(t.Context(), d.db, postgres.ClaimRequest{
			Worker: dead, Claim: claim, Destinations: []uuid.UUID{destination}, Quotas: []int{20}, Lane: postgres.LaneBatch, Workflows: 5})
		require.NoError(t, err)
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		d.starts.Wait()
		require.Empty(t, d.starter.started, "it is alive")
		require.NoError(t, postgres.RemoveWorker(t.Context(), d.db, dead))
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		d.starts.Wait()
		require.Equal(t, 1, d.starter.count("batch/"+id.Claim.Format(claim)))
		require.Equal(t, 5, d.starter.count("deliver/"))
		require.Len(t, d.starter.started, 6)
		require.Equal(t, []int{20, 15}, []int{len(d.inFlight), d.batched})
	})
}

// The connection that Postgres answers a commit on may be gone by then: what was claimed so is carried soon, though its worker lives.
func TestDispatcherCarriesWhatItClaimedWithoutLearningOfIt(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		destination := d.accept(t, 20, postgres.LaneBatch, 0)
		unheard := func(quota int) { // committed, and nobody learns of it
			_, err := postgres.Claim(t.Context(), d.db, postgres.ClaimRequest{Worker: d.worker, Claim: id.New(),
				Destinations: []uuid.UUID{destination}, Quotas: []int{quota}, Lane: postgres.LaneWorkflow})
			require.NoError(t, err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		claim := func(ctx context.Context) error {
			_, err := d.claimShares(ctx, []postgres.DueDestination{{ID: destination, TenantID: d.tenant, Lane: postgres.LaneWorkflow}}, 5,
				postgres.ClaimRequest{Worker: d.worker, Claim: id.New(), Lane: postgres.LaneWorkflow})
			return err
		}
		require.Error(t, claim(gone))
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		d.starts.Wait()
		require.Empty(t, d.starter.started)
		unheard(5) // its backend took that long
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		d.starts.Wait()
		require.Len(t, d.starter.started, 5, "each once")
		require.Len(t, d.inFlight, 5)

		require.Error(t, claim(gone))
		unheard(3)
		pass(2 * doubtFor) // Postgres was away all the time
		require.NoError(t, d.takeOver(t.Context(), d.worker))
		d.starts.Wait()
		require.Len(t, d.starter.started, 8)
		require.Zero(t, d.doubt, "that was all")
	})
}

// The places of what is in flight twice, because it was taken over while it was, are counted once.
func TestDispatcherCountsEachDeliveryInFlightOnce(t *testing.T) {
	t.Parallel()
	d := &Dispatcher{limit: 10, places: places{permits: alone(id.New())}, inFlight: map[uuid.UUID]*flight{}, wake: make(chan struct{}, 1)}
	batch := postgres.Claimed{DeliveryID: id.New(), Lane: postgres.LaneBatch}
	single := postgres.Claimed{DeliveryID: id.New(), Lane: postgres.LaneWorkflow}
	for range 2 {
		d.enter([]postgres.Claimed{batch, single})
		require.Equal(t, []int{9, mostBatched - 1}, []int{d.free(), d.freeForBatches()})
	}
	batch.Lane, single.Lane = single.Lane, batch.Lane
	d.enter([]postgres.Claimed{batch, single})
	require.Equal(t, []int{9, mostBatched - 1}, []int{d.free(), d.freeForBatches()})
	for range 2 {
		d.Recorded(batch.DeliveryID)
		d.Recorded(single.DeliveryID)
		require.Equal(t, []int{10, mostBatched}, []int{d.free(), d.freeForBatches()})
	}
	require.Empty(t, d.wake, "there was room all the time: nobody waits")
}
