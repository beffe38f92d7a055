package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
)

// slowly answers as answer does, after a while, so that many requests are in flight at any time.
func slowly(answer func(int, http.ResponseWriter, *http.Request)) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(50 * time.Millisecond):
			answer(n, w, r)
		case <-r.Context().Done():
		}
	}
}

// The whole process is killed while it carries batches, and started again. Nothing is lost, every attempt has one leaf,
// and what was received more often than it is recorded was in flight then: the leaves say so.
func TestKilledWithBatchesUnderWayNothingIsLost(t *testing.T) {
	dir := openDir(t)
	p := startProcess(t, dir)
	before := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	receivers := []*receiver{startReceiver(t, slowly(ok)), startReceiver(t, slowly(failing(1)))}
	receivers = append(receivers, startReceiver(t, slowly(func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })))
	endpoint := before.createLane(t, client.Batch,
		client.NewDestination{URL: receivers[0].URL},
		client.NewDestination{URL: receivers[1].URL, Schedule: schedule(300, 300, 300)},
		client.NewDestination{URL: receivers[2].URL, Schedule: schedule(200, 400)})
	accepted := underLoad(t, before, endpoint, 200, func() { require.NoError(t, p.Process.Kill()) })
	_, _ = p.Process.Wait()
	before.db.Close()

	p = startProcess(t, dir)
	after := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	after.awaitSealed(t, 2*time.Minute)
	for event := range accepted {
		after.requireEnded(t, []string{event}, "")
	}
	require.Positive(t, after.count(t, "select count(*) from deliveries where lane = 'batch'"))
	after.checkRecord(t)
	after.requireExplained(t, receivers...)
	requireReplays(t, p.running.DatabaseURL, p.running.Temporal)
}

// requireExplained compares what receivers got with the log: each recorded attempt was received, and what was received
// beyond that is counted as a lost start in the leaf of the attempt that it was.
func (s *site) requireExplained(t *testing.T, receivers ...*receiver) {
	t.Helper()
	received := map[string]int{}
	for _, r := range receivers {
		for delivery, n := range r.counts() {
			received[delivery] = n
		}
	}
	rows, err := s.db.Query(t.Context(), `select a.delivery_id, count(*), sum((convert_from(l.leaf, 'UTF8')::jsonb->>'lost_starts')::int)
		from attempts a join merkle_leaves l on l.attempt_id = a.id where a.kind = 'attempt' group by 1`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var delivery uuid.UUID
		var attempts, lost int
		require.NoError(t, rows.Scan(&delivery, &attempts, &lost))
		n := received[id.Delivery.Format(delivery)]
		require.GreaterOrEqual(t, n, attempts, "%s: attempts that nobody received", delivery)
		require.LessOrEqual(t, n, attempts+lost, "%s: requests of which the log knows nothing", delivery)
		delete(received, id.Delivery.Format(delivery))
	}
	require.NoError(t, rows.Err())
	require.Empty(t, received, "received, and never recorded")
}
