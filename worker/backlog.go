package worker

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// backlogAge is how old what a scrape is told may be, so that many who scrape cost no more than one.
	backlogAge = 10 * time.Second
	// backlogTimeout bounds what a scrape waits for Postgres.
	backlogTimeout = 2 * time.Second
	// backlogTop is how many destinations and logs have series of their own; there may be any number of both.
	backlogTop = 10
)

// backlog tells what waits in the whole database, so every worker says the same. It is read when Prometheus asks. If Postgres
// doesn't answer, nothing is told: figures from before would look as if all were well.
type backlog struct {
	db  *pgxpool.Pool
	log *zap.Logger

	mu    sync.Mutex
	last  postgres.Backlog
	ok    bool
	until time.Time // when it is read again

	up, waiting, oldestDue, oldestWaiting, destinations *prometheus.Desc
	leaves, oldestUnattested, headAge, deadLetters      *prometheus.Desc
	treeSize, publishedSize, workers, ahead             *prometheus.Desc
}

func newBacklog(db *pgxpool.Pool, log *zap.Logger) *backlog {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &backlog{
		db: db, log: log,
		up: desc("kapsel_backlog_up", "1 if Postgres said what waits, 0 if it didn't within 2 s; then the metrics about it are missing."),
		waiting: desc("kapsel_queue_deliveries", "Deliveries in the queue, by state: claimed (a worker has them), due (a worker could have them), "+
			"held (due, but their destination is paused, disabled or has an open circuit), later. An estimate if there are very many.", "state"),
		oldestDue: desc("kapsel_queue_oldest_due_seconds", "For how long a delivery has been due that nothing holds: what the workers are behind."),
		oldestWaiting: desc("kapsel_queue_oldest_waiting_seconds",
			"How long ago the oldest delivery in the queue was accepted, whatever it waits for."),
		destinations: desc("kapsel_queue_destination_deliveries", "Deliveries in the queue of the destinations with the most, at most 10.", "destination_id"),
		leaves:       desc("kapsel_log_queue_leaves", "Leaves that wait for their place in a log. An estimate if there are very many."),
		oldestUnattested: desc("kapsel_log_oldest_unattested_seconds",
			"How long ago the oldest attempt was recorded, or was given its place in its log, that no signed head covers."),
		headAge:       desc("kapsel_log_head_age_seconds", "How old the newest signed head is, of the log where it is oldest. One is signed every 10 min at least."),
		deadLetters:   desc("kapsel_log_dead_letters", "Leaves that were set aside because they aren't what was recorded, and wait for a person. At most 10000 are counted."),
		treeSize:      desc("kapsel_log_tree_size", "Leaves in a log, of the largest logs, at most 10.", "log_id"),
		publishedSize: desc("kapsel_log_published_size", "Leaves in a log that its newest signed head covers.", "log_id"),
		workers:       desc("kapsel_workers", "Workers that hold a lease."),
		ahead:         desc("kapsel_partitions_ahead_seconds", "For how long from now there are partitions. Without one nothing can be accepted."),
	}
}

// Describe sends what Collect may send.
func (b *backlog) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{b.up, b.waiting, b.oldestDue, b.oldestWaiting, b.destinations, b.leaves, b.oldestUnattested,
		b.headAge, b.deadLetters, b.treeSize, b.publishedSize, b.workers, b.ahead} {
		to <- desc
	}
}

// Collect sends what waits.
func (b *backlog) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	now, ok := b.look()
	if !ok {
		gauge(b.up, 0)
		return
	}
	gauge(b.up, 1)
	gauge(b.waiting, now.Claimed, "claimed")
	gauge(b.waiting, now.Due, "due")
	gauge(b.waiting, now.Held, "held")
	gauge(b.waiting, max(now.Waiting-now.Claimed-now.Due-now.Held, 0), "later")
	gauge(b.oldestDue, now.OldestDue.Seconds())
	gauge(b.oldestWaiting, now.OldestWaiting.Seconds())
	for _, d := range now.Destinations {
		gauge(b.destinations, d.Waiting, id.Destination.Format(d.ID))
	}
	gauge(b.leaves, now.Leaves)
	gauge(b.oldestUnattested, now.OldestUnattested.Seconds())
	gauge(b.headAge, now.OldestHead.Seconds())
	gauge(b.deadLetters, float64(now.DeadLetters))
	for _, l := range now.Logs {
		gauge(b.treeSize, l.Size, id.Log.Format(l.ID))
		gauge(b.publishedSize, l.Published, id.Log.Format(l.ID))
	}
	gauge(b.workers, float64(now.Workers))
	gauge(b.ahead, now.PartitionsAhead.Seconds())
}

// look asks Postgres, unless somebody did a moment ago. Whoever comes meanwhile waits for the same answer.
func (b *backlog) look() (postgres.Backlog, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Now().Before(b.until) {
		return b.last, b.ok
	}
	ctx, cancel := context.WithTimeout(context.Background(), backlogTimeout)
	defer cancel()
	var err error
	if b.last, err = postgres.ReadBacklog(ctx, b.db, backlogTop); err != nil {
		b.log.Warn("what waits is not known", zap.Error(err))
	}
	b.ok, b.until = err == nil, time.Now().Add(backlogAge)
	if !b.ok {
		b.until = time.Now().Add(backlogTimeout)
	}
	return b.last, b.ok
}

// watch registers what the dispatcher has claimed and knows no record of yet, and how much that may be.
func (d *Dispatcher) watch(registerer prometheus.Registerer) {
	if registerer == nil {
		return
	}
	for lane, count := range map[postgres.Lane]func(inFlight, batched int) int{
		postgres.LaneWorkflow: func(inFlight, batched int) int { return inFlight - batched },
		postgres.LaneBatch:    func(_, batched int) int { return batched },
	} {
		registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kapsel_dispatcher_in_flight", Help: "Deliveries that this worker claimed and that wait for the record of their attempt, by lane.",
			ConstLabels: prometheus.Labels{"lane": string(lane)},
		}, func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return float64(count(len(d.inFlight), d.batched))
		}))
	}
	registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kapsel_dispatcher_places", Help: "How many deliveries of lane workflow this worker may have in flight (MAX_IN_FLIGHT).",
	}, func() float64 { return float64(d.limit) }))
}
