package main

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
)

// delivery reads a delivery of an event.
func (s *site) delivery(t *testing.T, event, delivery string) client.Delivery {
	t.Helper()
	answer, err := s.api.GetEventWithResponse(t.Context(), event)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON200, string(answer.Body))
	for _, d := range answer.JSON200.Deliveries {
		if d.ID == delivery || delivery == "" {
			return d
		}
	}
	t.Fatalf("event %s has no delivery %s", event, delivery)
	return client.Delivery{}
}

// awaitState waits until a delivery is in a state, and returns it.
func (s *site) awaitState(t *testing.T, event, delivery, state string) client.Delivery {
	t.Helper()
	var d client.Delivery
	require.Eventually(t, func() bool {
		d = s.delivery(t, event, delivery)
		return d.State == state
	}, time.Minute, 50*time.Millisecond, "delivery of %s isn't %s", event, state)
	return d
}

// awaitWait waits until a delivery was attempted so often and waits for the next one.
func (s *site) awaitWait(t *testing.T, delivery string, attempts int) {
	t.Helper()
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return s.count(t, `select count(*) from deliveries
			where id = $1 and next_attempt = $2 + 1 and state = 'pending' and lost_starts = 0 and due_at > now()`, deliveryID, attempts) == 1
	}, time.Minute, 20*time.Millisecond)
}

func (s *site) mustCancel(t *testing.T, delivery string) {
	t.Helper()
	answer, err := s.api.CancelDeliveryWithResponse(t.Context(), delivery)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON202, string(answer.Body))
}

func (s *testStack) cancelWhenItWaits(t *testing.T, delivery string) {
	s.awaitWait(t, delivery, 1)
	s.mustCancel(t, delivery)
}

func (s *testStack) retryWhenItWaits(t *testing.T, delivery string) {
	s.awaitWait(t, delivery, 1)
	answer, err := s.api.RetryDeliveryNowWithResponse(t.Context(), delivery)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON202, string(answer.Body))
}

// Cancel and retry now, wherever a delivery is, in both lanes: one terminal leaf each, and what was sent counts.
func TestCommandsReachADeliveryWhereverItIs(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		t.Run(string(lane), func(t *testing.T) {
			t.Run("canceled before anybody claims it", func(t *testing.T) {
				never := startReceiver(t, ok)
				event := s.mustIngest(t, s.pausedEndpoint(t, lane, never.URL), "x")
				delivery := s.delivery(t, event, "").ID
				s.mustCancel(t, delivery)
				d := s.awaitState(t, event, delivery, "canceled")
				require.Len(t, d.Attempts, 1)
				require.Equal(t, []string{"canceled", "requested"}, []string{d.Attempts[0].Kind, d.Attempts[0].Outcome})
				answer, err := s.api.CancelDeliveryWithResponse(t.Context(), delivery)
				require.NoError(t, err)
				require.Equal(t, http.StatusConflict, answer.StatusCode(), "it is finished")
				require.Empty(t, never.counts())
			})
			t.Run("canceled while it waits", func(t *testing.T) {
				flaky := startReceiver(t, failing(9))
				endpoint := s.createLane(t, lane, client.NewDestination{URL: flaky.URL, Schedule: schedule(2_000_000)})
				event := s.mustIngest(t, endpoint, "x")
				delivery := s.delivery(t, event, "").ID
				s.awaitWait(t, delivery, 1)
				s.mustCancel(t, delivery)
				d := s.awaitState(t, event, delivery, "canceled")
				require.Len(t, d.Attempts, 2)
				flaky.requireTimes(t, 1, 1)
			})
			t.Run("canceled while a request is in flight that is delivered", func(t *testing.T) {
				hanging, release := startStalling(t)
				event, delivery := s.inFlight(t, lane, hanging)
				s.mustCancel(t, delivery)
				s.mustCancel(t, delivery) // twice
				s.awaitTried(t, delivery)
				require.Equal(t, "pending", s.delivery(t, event, delivery).State)
				release()
				d := s.awaitState(t, event, delivery, "delivered")
				require.Len(t, d.Attempts, 1)
				s.awaitZero(t, time.Minute, "select count(*) from delivery_commands where relayed_at is null")
			})
			t.Run("canceled while a request is in flight that fails", func(t *testing.T) {
				released := make(chan struct{})
				hanging := startReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
					select {
					case <-released:
					case <-r.Context().Done():
					}
					w.WriteHeader(http.StatusServiceUnavailable)
				})
				event, delivery := s.inFlight(t, lane, hanging)
				s.mustCancel(t, delivery)
				close(released)
				d := s.awaitState(t, event, delivery, "canceled")
				require.Len(t, d.Attempts, 2)
				require.Equal(t, "retry", d.Attempts[0].Outcome)
				require.Equal(t, "canceled", d.Attempts[1].Kind)
				hanging.requireTimes(t, 1, 1)
			})
			t.Run("retried now", func(t *testing.T) {
				flaky := startReceiver(t, failing(1))
				endpoint := s.createLane(t, lane, client.NewDestination{URL: flaky.URL, Schedule: schedule(2_000_000)})
				event := s.mustIngest(t, endpoint, "x")
				delivery := s.delivery(t, event, "").ID
				s.retryWhenItWaits(t, delivery)
				require.Len(t, s.awaitState(t, event, delivery, "delivered").Attempts, 2)
				answer, err := s.api.RetryDeliveryNowWithResponse(t.Context(), delivery)
				require.NoError(t, err)
				require.Equal(t, http.StatusConflict, answer.StatusCode(), "it is finished")
			})
		})
	}
	s.awaitSealed(t, time.Minute)
	s.checkRecord(t)
}

// pausedEndpoint is one whose destination is paused.
func (s *testStack) pausedEndpoint(t *testing.T, lane client.Lane, url string) client.Endpoint {
	t.Helper()
	endpoint := s.createLane(t, lane, client.NewDestination{URL: url})
	destinationID, err := id.Destination.Parse(endpoint.Destinations[0].ID)
	require.NoError(t, err)
	_, err = s.db.Exec(t.Context(), "update destinations set paused_at = now() where id = $1", destinationID)
	require.NoError(t, err)
	return endpoint
}

// inFlight sends a webhook to a receiver that doesn't answer yet, and returns when its request has arrived there.
func (s *testStack) inFlight(t *testing.T, lane client.Lane, hanging *receiver) (event, delivery string) {
	t.Helper()
	endpoint := s.createLane(t, lane, client.NewDestination{URL: hanging.URL, TimeoutMs: &twoMinutes, Schedule: schedule(2_000_000)})
	event = s.mustIngest(t, endpoint, "x")
	delivery = s.delivery(t, event, "").ID
	require.Eventually(t, func() bool { return hanging.counts()[delivery] == 1 }, time.Minute, 10*time.Millisecond)
	return event, delivery
}

// awaitTried waits until a worker has looked at the command to a delivery.
func (s *site) awaitTried(t *testing.T, delivery string) {
	t.Helper()
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from delivery_commands where delivery_id = $1 and try_at > now()", deliveryID) == 1
	}, time.Minute, 10*time.Millisecond)
}

// A receiver was down and is back: what died meanwhile is delivered again, first one and then all of the rest. It is counted
// before anything happens, and nobody gets anything twice.
func TestWhatDiedIsDeliveredAgain(t *testing.T) {
	s := startTestStack(t)
	var up atomic.Bool
	recovering := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	endpoint := s.createEndpoint(t, client.NewDestination{URL: recovering.URL, Schedule: schedule(50)})
	const events = 25
	var all []string
	for range events {
		all = append(all, s.mustIngest(t, endpoint, "x"))
	}
	s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")
	up.Store(true)

	old := s.delivery(t, all[0], "")
	require.Equal(t, "dead", old.State)
	key := "again"
	first, err := s.api.RedeliverWithResponse(t.Context(), old.ID, &client.RedeliverParams{IdempotencyKey: &key})
	require.NoError(t, err)
	again, err := s.api.RedeliverWithResponse(t.Context(), old.ID, &client.RedeliverParams{IdempotencyKey: &key})
	require.NoError(t, err)
	require.Equal(t, first.JSON202.DeliveryID, again.JSON202.DeliveryID)
	d := s.awaitState(t, all[0], first.JSON202.DeliveryID, "delivered")
	require.Equal(t, old.ID, *d.RedeliveryOf)

	dry, rate := true, 20
	filter := client.NewRedeliveryJob{DestinationID: &endpoint.Destinations[0].ID, RatePerSecond: &rate}
	filter.DryRun = &dry
	counted, err := s.api.CreateRedeliveryJobWithResponse(t.Context(), nil, filter)
	require.NoError(t, err)
	require.Equal(t, client.RedeliveryCount{Total: events, WouldRedeliver: events - 1, Complete: true,
		WouldSkip: client.RedeliverySkips{Redelivered: 1}}, *counted.JSON200)
	require.Equal(t, events+1, s.count(t, "select count(*) from deliveries"), "nothing happened")

	filter.DryRun = nil
	created, err := s.api.CreateRedeliveryJobWithResponse(t.Context(), nil, filter)
	require.NoError(t, err)
	require.NotNil(t, created.JSON202, string(created.Body))
	job := s.awaitJob(t, created.JSON202.ID)
	require.Equal(t, "done", job.State)
	require.Equal(t, []int64{events, events - 1, 1}, []int64{job.Total, job.Done, job.Skipped.Redelivered})
	s.awaitSealed(t, time.Minute)
	require.Equal(t, events, s.count(t, "select count(*) from deliveries where state = 'delivered' and redelivery_of is not null"))
	require.Equal(t, 2*events, s.count(t, "select count(*) from deliveries"))
	s.checkRecord(t)
}

// awaitJob waits until a job is finished.
func (s *site) awaitJob(t *testing.T, jobID string) client.RedeliveryJob {
	t.Helper()
	var job client.RedeliveryJob
	require.Eventually(t, func() bool {
		answer, err := s.api.GetRedeliveryJobWithResponse(context.Background(), jobID)
		if err != nil || answer.JSON200 == nil {
			return false
		}
		job = *answer.JSON200
		return job.FinishedAt != nil
	}, 2*time.Minute, 50*time.Millisecond)
	return job
}

// The process is killed when commands were given and a job was under way. Nothing of that is lost, and nothing is done twice.
func TestKilledWithCommandsUnderWay(t *testing.T) {
	dir := openDir(t)
	p := startProcess(t, dir)
	before := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	failing := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	dead := before.createEndpoint(t, client.NewDestination{URL: failing.URL, Schedule: schedule(20)})
	waiting := before.createEndpoint(t, client.NewDestination{URL: failing.URL, Schedule: schedule(2_000_000)})
	batched := before.createLane(t, client.Batch, client.NewDestination{URL: failing.URL, Schedule: schedule(2_000_000)})
	const events = 30
	var toCancel []string
	for range events {
		before.mustIngest(t, dead, "x")
		toCancel = append(toCancel, before.mustIngest(t, waiting, "x"), before.mustIngest(t, batched, "x"))
	}
	before.awaitZero(t, time.Minute, "select count(*) from deliveries where next_attempt = 1")
	before.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending' and (due_at is null or due_at < now() + interval '1 minute')")
	require.Equal(t, events, before.to(t, dead.Destinations[0], "state = 'dead'"))
	rate := 10
	created, err := before.api.CreateRedeliveryJobWithResponse(t.Context(), nil, client.NewRedeliveryJob{EndpointID: &dead.ID, RatePerSecond: &rate})
	require.NoError(t, err)
	require.NotNil(t, created.JSON202, string(created.Body))
	require.Eventually(t, func() bool {
		return before.count(t, "select count(*) from redelivery_jobs where done > 0 and state = 'running'") == 1
	}, time.Minute, 5*time.Millisecond)
	for _, event := range toCancel {
		before.mustCancel(t, before.delivery(t, event, "").ID)
	}
	require.NoError(t, p.Process.Kill())
	_, _ = p.Process.Wait()
	before.db.Close()

	p = startProcess(t, dir)
	after := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	job := after.awaitJob(t, created.JSON202.ID)
	require.Equal(t, "done", job.State)
	require.Equal(t, []int64{events, events}, []int64{job.Total, job.Done})
	after.awaitZero(t, time.Minute, "select count(*) from delivery_commands where relayed_at is null")
	after.awaitSealed(t, time.Minute)
	for _, event := range toCancel {
		require.Equal(t, "canceled", after.delivery(t, event, "").State)
	}
	require.Equal(t, 2*events, after.to(t, dead.Destinations[0], "state = 'dead'"))
	require.Equal(t, events, after.count(t, "select count(distinct redelivery_of) from deliveries"))
	after.checkRecord(t)
}
