package activities

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/activity"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

const (
	// reconcilePage is how many attempts or leaves are looked at at once, and reconcilePages how many pages one activity reads.
	reconcilePage  = 2000
	reconcilePages = 20
	// reconcileAfter is how long after its record an attempt is looked at. Most are in the log within a second.
	reconcileAfter = 2 * time.Minute
	// queuedLong is how long a leaf may wait before it is asked whether it ever gets its place.
	queuedLong = 10 * time.Minute
	// reportedFindings is how many findings a result names. All of them are counted, and kept in attestation_findings.
	reportedFindings = 20
)

// The problems that reconciliation finds.
const (
	ProblemMissing       = "missing"        // an attempt, or an event's acceptance, has no leaf, and its leaf can't be made again
	ProblemLogClosed     = "log_closed"     // an attempt has no leaf, and its log takes none any more
	ProblemDiffers       = "differs"        // a leaf in the log isn't the one that its attempt recorded
	ProblemLeafUnknown   = "leaf_unknown"   // a leaf in the log is of an attempt that nobody recorded
	ProblemQueuedUnknown = "queued_unknown" // so is one that waits in the queue, for long
)

// Problems are how many there are of each.
type Problems struct {
	Missing, LogClosed, Differs, LeafUnknown, QueuedUnknown int
}

var problems = []string{ProblemMissing, ProblemLogClosed, ProblemDiffers, ProblemLeafUnknown, ProblemQueuedUnknown}

func (p *Problems) of(problem string) *int {
	return map[string]*int{
		ProblemMissing: &p.Missing, ProblemLogClosed: &p.LogClosed, ProblemDiffers: &p.Differs, ProblemLeafUnknown: &p.LeafUnknown,
		ProblemQueuedUnknown: &p.QueuedUnknown,
	}[problem]
}

// ReconcileInput says when the run began of which this is a part: in it no day is looked at twice.
type ReconcileInput struct {
	BegunMS int64 // Unix ms
}

// Reconciled is what a run did, or a part of it.
type Reconciled struct {
	Attempts int // that were compared with the log, and events whose acceptance is attested
	Leaves   int // that were compared with them
	Waiting  int // attempts that were left for the next time, since the log hasn't come so far
	Requeued int // leaves that were lost, and put into the queue again
	// Findings are problems that can't be repaired; Examples some of them.
	Findings Problems
	Examples []ReconcileFinding
	// More: there is more to do in this run.
	More bool
}

// ReconcileFinding names an attempt, or the event of whose acceptance the leaf is. attestation_findings says more.
type ReconcileFinding struct {
	Problem, AttemptID, LogID string
}

// Add adds what another part did.
func (r *Reconciled) Add(part Reconciled) {
	r.Attempts, r.Leaves, r.Waiting, r.Requeued = r.Attempts+part.Attempts, r.Leaves+part.Leaves, r.Waiting+part.Waiting, r.Requeued+part.Requeued
	for _, problem := range problems {
		*r.Findings.of(problem) += *part.Findings.of(problem)
	}
	r.Examples = append(r.Examples, part.Examples[:min(len(part.Examples), reportedFindings-len(r.Examples))]...)
	r.More = part.More
}

// ReconcilingConfig says what to reconcile.
type ReconcilingConfig struct {
	DB *pgxpool.Pool // role kapsel_engine
	// OnLeaves is told that leaves were queued.
	OnLeaves func()
	// Metrics is where reconciliation registers its metrics. Default: nowhere.
	Metrics prometheus.Registerer
	Log     *zap.Logger
}

// Reconciling compares what was recorded with what is in the logs.
type Reconciling struct {
	config   ReconcilingConfig
	requeued prometheus.Counter
}

// NewReconciling returns what reconciles by config.
func NewReconciling(config ReconcilingConfig) *Reconciling {
	r := &Reconciling{config: config, requeued: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kapsel_leaves_requeued_total", Help: "Leaves that this worker found lost, made again, and queued again.",
	})}
	if config.Metrics != nil {
		config.Metrics.MustRegister(r.requeued)
	}
	return r
}

// Reconcile does a part of a run: it looks at up to 40,000 attempts, and as many leaves, and goes on where the last part ended.
// Whatever else happens meanwhile, nothing is taken for lost that is on its way: see postgres.Settled, and QueueAgain, which looks
// again under the log's lock.
// Timeout 5 minutes, heartbeat 30 s. It may run twice, also at once: what is queued twice gets one place.
func (r *Reconciling) Reconcile(ctx context.Context, in ReconcileInput) (Reconciled, error) {
	var done Reconciled
	more, err := r.attempts(ctx, time.UnixMilli(in.BegunMS), &done)
	if err != nil {
		return done, err
	}
	moreLeaves, err := r.leaves(ctx, &done)
	done.More = more || moreLeaves
	if done.Requeued > 0 && r.config.OnLeaves != nil {
		r.config.OnLeaves()
	}
	return done, err
}

// attempts looks for attempts, and events whose acceptance is attested, without a leaf.
func (r *Reconciling) attempts(ctx context.Context, begun time.Time, done *Reconciled) (more bool, err error) {
	for range reconcilePages {
		beat(ctx)
		day, after, ok, err := postgres.NextDay(ctx, r.config.DB, begun)
		if err != nil || !ok {
			return false, err
		}
		page, err := postgres.AttemptsOfDay(ctx, r.config.DB, day, after, reconcilePage)
		if err != nil {
			return false, err
		}
		if err := r.attemptPage(ctx, page, done); err != nil {
			return false, err
		}
		if len(page) > 0 {
			after = page[len(page)-1].AttemptID
		}
		if err := postgres.DayReached(ctx, r.config.DB, day, after, len(page) < reconcilePage); err != nil {
			return false, err
		}
	}
	return true, nil
}

// attemptPage: the order of what is read matters. Whoever sees the attempt would see its leaf in the queue, or later in the log.
func (r *Reconciling) attemptPage(ctx context.Context, page []postgres.RecordedLeaf, done *Reconciled) error {
	settled, err := postgres.Settled(ctx, r.config.DB)
	if err != nil {
		return err
	}
	var looked []uuid.UUID
	for _, a := range page {
		if since, known := settled[a.LogID]; time.Since(a.RecordedAt) < reconcileAfter || known && a.RecordedAt.After(since.Add(-reconcileAfter)) {
			done.Waiting++
			continue
		}
		looked = append(looked, a.AttemptID)
	}
	have, err := postgres.HaveLeaves(ctx, r.config.DB, looked)
	if err != nil {
		return err
	}
	var lost []uuid.UUID
	for _, attempt := range looked {
		if !have[attempt] {
			lost = append(lost, attempt)
		}
	}
	done.Attempts += len(looked)
	findings, err := r.restore(ctx, lost, done)
	if err != nil {
		return err
	}
	return r.report(ctx, []string{ProblemMissing, ProblemLogClosed}, looked, findings, done)
}

// restore queues the leaves of attempts, and of events' acceptances, again, and says of which that can't be done.
func (r *Reconciling) restore(ctx context.Context, lost []uuid.UUID, done *Reconciled) ([]postgres.Finding, error) {
	if len(lost) == 0 {
		return nil, nil
	}
	recorded, err := postgres.ReadRecorded(ctx, r.config.DB, lost)
	if err != nil {
		return nil, err
	}
	accepted, err := postgres.ReadAcceptances(ctx, r.config.DB, lost)
	if err != nil {
		return nil, err
	}
	letters, err := postgres.DeadLettersOf(ctx, r.config.DB, lost)
	if err != nil {
		return nil, err
	}
	aside := map[uuid.UUID][][]byte{}
	for _, l := range letters {
		aside[l.AttemptID] = append(aside[l.AttemptID], l.Leaf)
	}
	var findings []postgres.Finding
	queue := map[uuid.UUID][]postgres.QueuedLeaf{} // by log
	add := func(leaf postgres.QueuedLeaf, closed bool, finding postgres.Finding) {
		if finding.Detail == "" {
			queue[finding.LogID] = append(queue[finding.LogID], leaf)
			return
		}
		if finding.Problem = ProblemMissing; closed {
			finding.Problem = ProblemLogClosed
		}
		findings = append(findings, finding)
	}
	for _, subject := range lost { // one that is in neither: its day was dropped meanwhile
		if a := recorded[subject]; a != nil {
			leaf, reason := restoreLeaf(a, aside[subject]...)
			add(leaf, a.LogClosed, postgres.Finding{Subject: subject, LogID: a.LogID, TenantID: a.TenantID, Detail: reason})
		}
		if e := accepted[subject]; e != nil {
			leaf, reason := restoreAcceptance(e, aside[subject]...)
			add(leaf, e.LogClosed, postgres.Finding{Subject: subject, LogID: e.LogID, TenantID: e.TenantID, Detail: reason, Event: true})
		}
	}
	for log, leaves := range queue {
		if err := r.queueAgain(ctx, log, leaves, accepted, done); err != nil {
			return nil, err
		}
	}
	return findings, nil
}

func (r *Reconciling) queueAgain(ctx context.Context, log uuid.UUID, leaves []postgres.QueuedLeaf, accepted map[uuid.UUID]*postgres.RecordedAcceptance,
	done *Reconciled) error {
	results, err := postgres.QueueAgain(ctx, r.config.DB, log, leaves, nil, "reconciliation")
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		if results[leaf.AttemptID] == postgres.ResolvedQueued {
			done.Requeued++
			r.requeued.Inc()
			r.config.Log.Warn("leaf was lost; made again and queued", subjectField(leaf.AttemptID, accepted[leaf.AttemptID] != nil),
				zap.String("tenant_id", id.Tenant.Format(leaf.TenantID)), zap.String("log_id", id.Log.Format(log)))
		}
	}
	return nil
}

// subjectField names what a leaf is of: an attempt, or the acceptance of an event.
func subjectField(subject uuid.UUID, event bool) zap.Field {
	if event {
		return zap.String("event_id", id.Event.Format(subject))
	}
	return zap.String("attempt_id", id.Attempt.Format(subject))
}

// leaves looks for leaves, in the logs and in their queues, that no attempt recorded.
func (r *Reconciling) leaves(ctx context.Context, done *Reconciled) (more bool, err error) {
	logs, err := postgres.LogsReached(ctx, r.config.DB)
	if err != nil {
		return false, err
	}
	oldest, err := postgres.OldestDay(ctx, r.config.DB)
	if err != nil {
		return false, err
	}
	pages := reconcilePages
	for _, log := range logs {
		queued, err := postgres.LongQueued(ctx, r.config.DB, log.LogID, queuedLong, reconcilePage)
		if err != nil {
			return false, err
		}
		if err := r.leafPage(ctx, log.LogID, queued, oldest, ProblemQueuedUnknown, done); err != nil {
			return false, err
		}
		for ; log.LeafIndex < log.TreeSize; pages-- {
			if pages == 0 {
				return true, nil
			}
			beat(ctx)
			to := min(log.LeafIndex+reconcilePage, log.TreeSize)
			leaves, err := postgres.LeavesFrom(ctx, r.config.DB, log.LogID, log.LeafIndex, to)
			if err != nil {
				return false, err
			}
			if err := r.leafPage(ctx, log.LogID, leaves, oldest, ProblemLeafUnknown, done); err != nil {
				return false, err
			}
			log.LeafIndex = to
			if err := postgres.SetLogReached(ctx, r.config.DB, log.LogID, to); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// leafPage compares leaves with the attempts that they claim to be of. unknown is what it means if there is no such attempt.
func (r *Reconciling) leafPage(ctx context.Context, log uuid.UUID, leaves []postgres.LeafOf, oldest time.Time, unknown string, done *Reconciled) error {
	if len(leaves) == 0 {
		return nil
	}
	ids := make([]uuid.UUID, len(leaves))
	for i, l := range leaves {
		ids[i] = l.AttemptID
	}
	recorded, err := postgres.LeafHashesOf(ctx, r.config.DB, ids)
	if err != nil {
		return err
	}
	var findings []postgres.Finding
	var accepted []postgres.LeafOf
	for _, l := range leaves {
		finding := postgres.Finding{Subject: l.AttemptID, LogID: log, TenantID: l.TenantID}
		switch a, there := recorded[l.AttemptID]; {
		case there && a.LogID == log && string(a.LeafHash) != string(l.LeafHash):
			finding.Problem, finding.Detail = ProblemDiffers, fmt.Sprintf("%x was recorded, the leaf is %x", a.LeafHash, l.LeafHash)
			findings = append(findings, finding)
		case !there && !id.Time(l.AttemptID).Before(oldest): // else nobody keeps the attempts of that day any more
			accepted = append(accepted, l)
		}
	}
	events := make([]uuid.UUID, len(accepted))
	for i, l := range accepted {
		events[i] = l.AttemptID
	}
	known, err := postgres.EventsOf(ctx, r.config.DB, events)
	if err != nil {
		return err
	}
	for _, l := range accepted {
		if !known[l.AttemptID] || !attestsAcceptance(l) {
			findings = append(findings, postgres.Finding{Problem: unknown, Subject: l.AttemptID, LogID: log, TenantID: l.TenantID,
				Detail: fmt.Sprintf("no attempt is recorded; the leaf is %x", l.LeafHash)})
		}
	}
	done.Leaves += len(leaves)
	return r.report(ctx, []string{unknown, ProblemDiffers}, ids, findings, done)
}

// attestsAcceptance reports whether a leaf stands under the ID of the event whose acceptance it attests, as far as can be seen: its
// bytes may be erased.
func attestsAcceptance(l postgres.LeafOf) bool {
	if l.Leaf == nil {
		return true
	}
	leaf, err := verify.ParseLeaf(l.Leaf)
	return err == nil && leaf.Kind == verify.KindAccepted && leaf.EventID == id.Event.Format(l.AttemptID)
}

// report keeps findings about what was looked at, and tells of each.
func (r *Reconciling) report(ctx context.Context, about []string, looked []uuid.UUID, findings []postgres.Finding, done *Reconciled) error {
	if len(looked) == 0 {
		return nil
	}
	for _, problem := range about {
		if err := postgres.Found(ctx, r.config.DB, problem, looked, findings); err != nil {
			return err
		}
	}
	for _, f := range findings {
		*done.Findings.of(f.Problem)++
		subject := subjectField(f.Subject, f.Event)
		example := ReconcileFinding{f.Problem, subject.String, id.Log.Format(f.LogID)}
		if len(done.Examples) < reportedFindings {
			done.Examples = append(done.Examples, example)
			r.config.Log.Error("attempts and log don't agree", zap.String("problem", f.Problem), subject,
				zap.String("log_id", example.LogID), zap.String("tenant_id", id.Tenant.Format(f.TenantID)), zap.String("detail", f.Detail))
		}
	}
	return nil
}

func beat(ctx context.Context) {
	if activity.IsActivity(ctx) {
		activity.RecordHeartbeat(ctx)
	}
}
