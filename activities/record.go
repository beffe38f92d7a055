package activities

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
)

// Recording asks for the outcome of one attempt to be recorded.
type Recording struct {
	Delivery uuid.UUID
	Epoch    int
	Attempt  int
	Outcome  Outcome
	Response Response
	// Commitment is that of the event, if the sender has it at hand; nil: it is read.
	Commitment *postgres.Commitment
	// Cancel, if set, is why the delivery ends here: Attempt is not made, and a leaf of kind canceled says so.
	Cancel delivery.Reason
	// Erased: the delivery ends here, because nothing is left to send: Attempt is not made, and a leaf of kind dead says so.
	Erased bool
	// Unused (of both): the start that the claim counted surely never became a request.
	Unused bool
	// LookOnly: record nothing, only say where the delivery stands.
	LookOnly bool
}

// Response is what the receiver answered. It goes into Postgres, never through a workflow.
type Response struct {
	Headers []byte // as webhook.EncodeHeaders writes them
	Body    []byte
}

// Recorder records attempts: many callers share one transaction (invariant 4).
type Recorder struct {
	group *postgres.Group[Recording, recorded]
	// onRecord is told of each delivery whose attempt was recorded.
	onRecord func(delivery uuid.UUID)
	circuits *circuits
}

// RecorderConfig says where to record and whom to tell.
type RecorderConfig struct {
	DB *pgxpool.Pool // role kapsel_engine
	// OnRecord is told of each delivery whose attempt was recorded, after the commit.
	OnRecord func(delivery uuid.UUID)
	// OnLeaves is told after each commit that queued leaves.
	OnLeaves func()
	// OnTurn is told after each commit that may have put the next delivery of a line into the queue.
	OnTurn func()
	// Busy reports whether many deliveries are under way, each with a workflow of its own. Default: never.
	Busy func() bool
	// Metrics count the deliveries that ended. nil: nothing is counted.
	Metrics *Metrics
	// Tracing is told of the deliveries that ended. nil: nobody is.
	Tracing *tracing.Tracer
	// Observe is told of each commit: rows, time and outcome.
	Observe func(rows int, took time.Duration, err error)
}

// recorded is the answer to a Recording.
type recorded struct {
	progress Progress
	applied  bool               // this very recording led there
	delivery *postgres.Delivery // if it did
	err      error              // of this recording alone
}

// NewRecorder returns a recorder; Close it.
func NewRecorder(config RecorderConfig) *Recorder {
	seen := newCircuits()
	group := postgres.NewGroup(postgres.GroupConfig[Recording, recorded]{
		Commit: func(ctx context.Context, rows []Recording) ([]recorded, error) {
			results, turns, err := commitRecordings(ctx, config.DB, seen, rows)
			if err == nil && config.OnLeaves != nil {
				config.OnLeaves()
			}
			if err == nil && turns && config.OnTurn != nil {
				config.OnTurn()
			}
			for i, result := range results {
				config.Metrics.recorded(rows[i].Delivery, result)
				tellEnded(config.Tracing, result.delivery)
			}
			return results, err
		},
		Committers: 1,
		Size:       func(r Recording) int { return 2048 + len(r.Response.Headers) + len(r.Response.Body) },
		Gather:     gatherWhile(config.Busy),
		Observe:    config.Observe,
	})
	return &Recorder{group: group, onRecord: config.OnRecord, circuits: seen}
}

// Close records what waits.
func (r *Recorder) Close() { r.group.Close() }

// Record returns after the commit that holds the recording, with where the delivery stands then. Recorded twice, the
// second time changes nothing and answers from what is there.
func (r *Recorder) Record(ctx context.Context, recording Recording) (Progress, error) {
	result, err := r.group.Do(ctx, recording)
	if err != nil {
		return Progress{}, err
	}
	if result.err != nil {
		return Progress{}, result.err
	}
	r.released(recording.Delivery)
	return result.progress, nil
}

// released tells that a delivery has left its claim.
func (r *Recorder) released(delivery uuid.UUID) {
	if r.onRecord != nil {
		r.onRecord(delivery)
	}
}

// RecordAttempt records the outcome of a request that its sender couldn't record. The response itself is lost with the
// sender; its hash, size and status aren't.
// Timeout 30 s, retried without end. It may run twice: the attempt's ID is derived, and the fence lets one through.
func (a *Activities) RecordAttempt(ctx context.Context, in RecordInput) (Progress, error) {
	deliveryID, err := id.Delivery.Parse(in.DeliveryID)
	if err != nil {
		return Progress{}, temporal.NewNonRetryableApplicationError("delivery ID", "Input", err)
	}
	return a.Recorder.Record(ctx, Recording{Delivery: deliveryID, Epoch: in.Epoch, Attempt: in.Attempt, Outcome: in.Outcome})
}

// commitRecordings is one transaction over the deliveries of rows. turns is whether it passed on the turn of any.
func commitRecordings(ctx context.Context, db *pgxpool.Pool, seen *circuits, rows []Recording) (results []recorded, turns bool, err error) {
	ids := make([]uuid.UUID, 0, len(rows))
	known := make(map[uuid.UUID]*postgres.Commitment, len(rows))
	for _, r := range rows {
		ids = append(ids, r.Delivery)
		known[r.Delivery] = r.Commitment
	}
	results = make([]recorded, len(rows))
	err = postgres.RecordAttempts(ctx, db, ids, known, seen.figures(), func(locked map[uuid.UUID]*postgres.Delivery) ([]postgres.Change, error) {
		var changes []postgres.Change
		for i, r := range rows {
			d := locked[r.Delivery]
			switch {
			case d == nil:
				results[i] = recorded{err: fmt.Errorf("delivery %s does not exist", id.Delivery.Format(r.Delivery))}
			case r.LookOnly || !r.fits(d):
				results[i] = recorded{progress: r.standing(d)}
			case d.Gone():
				results[i] = recorded{err: fmt.Errorf("delivery %s: %w", id.Delivery.Format(r.Delivery), postgres.ErrEventGone)}
			default:
				change, err := r.apply(d)
				if err != nil {
					results[i] = recorded{err: err}
					continue
				}
				changes = append(changes, change)
				turns = turns || change.PassesTurn()
				results[i] = recorded{applied: true, delivery: d, progress: Progress{State: d.State, Delay: change.Delay, Moved: change.Park}}
			}
		}
		return changes, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("record %d attempts: %w", len(rows), err)
	}
	return results, turns, nil
}

// fits is the fence: the delivery waits for exactly this attempt, by this carrier.
func (r *Recording) fits(d *postgres.Delivery) bool {
	return d.State == string(delivery.Pending) && d.Epoch == r.Epoch && d.NextAttempt == r.Attempt
}

// standing says where a delivery is for a carrier whose attempt doesn't fit (any more): either the attempt was
// recorded before and the carrier goes on, or the delivery is somebody else's.
func (r *Recording) standing(d *postgres.Delivery) Progress {
	recordedBefore := d.Epoch == r.Epoch && d.NextAttempt == r.Attempt+1
	return Progress{State: d.State, Delay: d.DueIn, Moved: !recordedBefore}
}

// apply makes the attempt's leaf, the terminal leaf if the delivery is over, and moves d to where it stands then.
func (r *Recording) apply(d *postgres.Delivery) (postgres.Change, error) {
	switch {
	case r.Cancel != "":
		return r.endUnsent(d, func() (postgres.Change, error) { return endCanceled(d, r.Cancel, r.Outcome.EndpointURL) })
	case r.Erased:
		return r.endUnsent(d, func() (postgres.Change, error) { return endErased(d, r.Outcome.EndpointURL) })
	}
	before := *d
	attempt, err := r.attempt(d)
	if err != nil {
		*d = before
		return postgres.Change{}, err
	}
	change := postgres.Change{Delivery: d, Attempts: []postgres.Attempt{attempt}, Grace: r.Outcome.Grace, Verdict: r.Outcome.verdict()}
	d.State = r.Outcome.State
	switch delivery.State(d.State) {
	case delivery.Delivered:
	case delivery.Pending:
		if d.CancelRequested {
			ended, err := endCanceled(d, delivery.ReasonRequested, r.Outcome.EndpointURL)
			if err != nil {
				*d = before
				return postgres.Change{}, err
			}
			change.Attempts = append(change.Attempts, ended.Attempts...)
			break
		}
		change.Delay, change.Park = r.Outcome.Delay, r.Outcome.Park
		d.DueIn = change.Delay
		if change.Park {
			d.Epoch++
		}
	case delivery.Dead:
		end, err := decisionAttempt(d, delivery.KindDead, r.Outcome.Reason, r.Outcome.EndpointURL)
		if err != nil {
			*d = before
			return postgres.Change{}, err
		}
		change.Attempts = append(change.Attempts, end)
	default:
		*d = before
		return postgres.Change{}, fmt.Errorf("outcome leads to state %q", r.Outcome.State)
	}
	if r.Outcome.DisableDestination {
		change.DisableReason = r.Outcome.Reason
	}
	return change, nil
}

// attempt makes the row and the leaf of the HTTP request, and moves d past it.
func (r *Recording) attempt(d *postgres.Delivery) (postgres.Attempt, error) {
	o := r.Outcome
	attempt := postgres.Attempt{
		ID:                id.AttemptOf(d.ID, r.Attempt),
		Number:            r.Attempt,
		Epoch:             r.Epoch,
		Kind:              string(delivery.KindAttempt),
		Outcome:           o.Outcome,
		Error:             o.Error,
		AttemptedAt:       o.AttemptedAt,
		Duration:          o.Duration,
		EndpointURL:       o.EndpointURL,
		ResponseStatus:    o.ResponseStatus,
		ResponseSize:      o.ResponseSize,
		ResponseTruncated: o.ResponseTruncated,
		ResponseHeaders:   r.Response.Headers,
		ResponseBody:      r.Response.Body,
	}
	// The start of this send was counted; what else is counted was lost.
	lost := max(d.LostStarts-1, 0)
	err := addLeaf(d, &attempt, r.Attempt, lost, hashes{o.URLHash, o.HeadersHash, o.ResponseHash})
	d.LostStarts, d.NextAttempt = 0, r.Attempt+1
	return attempt, err
}

// decisionAttempt makes the row and the leaf of the decision to send no more.
func decisionAttempt(d *postgres.Delivery, kind delivery.Kind, reason, endpointURL string) (postgres.Attempt, error) {
	attempt := postgres.Attempt{
		ID:          id.AttemptOf(d.ID, id.Decision),
		Number:      id.Decision,
		Epoch:       d.Epoch,
		Kind:        string(kind),
		Outcome:     reason,
		AttemptedAt: time.Now(),
		EndpointURL: endpointURL,
	}
	if delivery.Reason(reason) == delivery.ReasonErased {
		attempt.Error = string(delivery.ErrorErased)
	}
	err := addLeaf(d, &attempt, d.NextAttempt-1, d.LostStarts, hashes{})
	return attempt, err
}
