package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
)

const (
	// maxOpenJobs is how many unfinished redelivery jobs a tenant may have.
	maxOpenJobs = 10
	defaultRate = 10
	maxRate     = 1000
	// countFor is how long a dry run counts.
	countFor = 5 * time.Second
)

// jobRow is a redelivery job as it is read, by whichever statement.
type jobRow db.GetRedeliveryJobRow

// CreateRedeliveryJob counts what would be delivered again, or stores a job that workers carry out.
func (s *Server) CreateRedeliveryJob(ctx context.Context, request openapi.CreateRedeliveryJobRequestObject) (openapi.CreateRedeliveryJobResponseObject, error) {
	job, err := parseJob(request.Body)
	if err != nil {
		return nil, err
	}
	if err := addJobKey(&job, request); err != nil {
		return nil, err
	}
	var answer openapi.CreateRedeliveryJobResponseObject
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		job.TenantID = tenant
		if err := boundJob(ctx, q, &job); err != nil {
			return err
		}
		if value(request.Body.DryRun) {
			answer, err = countJob(ctx, tx, job)
		} else {
			answer, err = createJob(ctx, q, job)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create redelivery job: %w", err)
	}
	return answer, nil
}

// addJobKey adds the key under which the same request may come again.
func addJobKey(job *db.InsertRedeliveryJobParams, request openapi.CreateRedeliveryJobRequestObject) (err error) {
	if job.KeyHash, err = redeliveryKey(request.Params.IdempotencyKey); err != nil || job.KeyHash == nil {
		return err
	}
	body, err := json.Marshal(request.Body)
	if err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	hash := sha256.Sum256(body)
	job.RequestHash = hash[:]
	return nil
}

// parseJob names the first member that is wrong.
func parseJob(body *openapi.NewRedeliveryJob) (job db.InsertRedeliveryJobParams, err error) {
	job = db.InsertRedeliveryJobParams{ID: id.New(), States: []string{string(delivery.Dead)}, RatePerSecond: defaultRate}
	if body.DestinationID == nil && body.EndpointID == nil {
		return job, invalidField("destination_id", "or endpoint_id is needed")
	}
	if job.DestinationID, err = parseOptional("destination_id", id.Destination, body.DestinationID); err != nil {
		return job, err
	}
	if job.EndpointID, err = parseOptional("endpoint_id", id.Endpoint, body.EndpointID); err != nil {
		return job, err
	}
	if body.States != nil {
		if job.States, err = parseStates(*body.States); err != nil {
			return job, err
		}
	}
	if rate := body.RatePerSecond; rate != nil {
		if *rate < 1 || *rate > maxRate {
			return job, invalidField("rate_per_second", "must be 1 to %d, not %d", maxRate, *rate)
		}
		job.RatePerSecond = int32(*rate)
	}
	job.AcceptedFrom, job.AcceptedUntil = value(body.From), value(body.Until)
	return job, nil
}

func parseOptional(field string, kind id.Kind, name *string) (*uuid.UUID, error) {
	if name == nil {
		return nil, nil
	}
	u, err := kind.Parse(*name)
	if err != nil {
		return nil, invalidField(field, "must be an ID: %s_ and 26 digits and lower-case letters", kind)
	}
	return &u, nil
}

func parseStates(states []string) ([]string, error) {
	if len(states) == 0 {
		return nil, invalidField("states", "must name at least one state, or be left out")
	}
	for i, state := range states {
		if !delivery.State(state).Terminal() {
			return nil, invalidField(fmt.Sprintf("states[%d]", i), `must be "dead", "delivered", "canceled" or "skipped"`)
		}
		if slices.Contains(states[:i], state) {
			return nil, invalidField(fmt.Sprintf("states[%d]", i), "is there twice")
		}
	}
	return states, nil
}

// boundJob makes sure that the job's destination and endpoint are the tenant's, and looks for nothing that was accepted before
// they were created or is accepted from now on.
func boundJob(ctx context.Context, q *db.Queries, job *db.InsertRedeliveryJobParams) error {
	var created time.Time
	if job.EndpointID != nil {
		at, err := q.EndpointCreated(ctx, *job.EndpointID)
		if errors.Is(err, pgx.ErrNoRows) {
			return invalidField("endpoint_id", "names no endpoint of yours")
		}
		if err != nil {
			return err
		}
		created = at
	}
	if job.DestinationID != nil {
		found, err := q.DestinationCreated(ctx, *job.DestinationID)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && job.EndpointID != nil && found.EndpointID != *job.EndpointID {
			return invalidField("destination_id", "names no such destination of yours")
		}
		if err != nil {
			return err
		}
		created = found.CreatedAt
	}
	// A process's clock may be behind that of Postgres: nothing is left out because of that.
	first, last := created.Add(-time.Minute), time.Now().Add(time.Minute)
	if !job.AcceptedFrom.IsZero() && !job.AcceptedUntil.IsZero() && !job.AcceptedFrom.Before(job.AcceptedUntil) {
		return invalidField("until", "must be later than from")
	}
	if job.AcceptedFrom.Before(first) {
		job.AcceptedFrom = first
	}
	if job.AcceptedUntil.IsZero() || job.AcceptedUntil.After(last) {
		job.AcceptedUntil = last
	}
	job.AcceptedFrom, job.AcceptedUntil = job.AcceptedFrom.UTC().Truncate(time.Millisecond), job.AcceptedUntil.UTC().Truncate(time.Millisecond)
	if !job.AcceptedFrom.Before(job.AcceptedUntil) {
		return invalidField("from", "and until leave no time in which anything was accepted")
	}
	return nil
}

func countJob(ctx context.Context, tx pgx.Tx, job db.InsertRedeliveryJobParams) (openapi.CreateRedeliveryJobResponseObject, error) {
	filter := postgres.RedeliveryFilter{
		Tenant: job.TenantID, Endpoint: job.EndpointID, Destination: job.DestinationID, States: job.States,
		From: job.AcceptedFrom, Until: job.AcceptedUntil,
	}
	free, err := db.New(tx).TryLockRedeliveryCount(ctx, job.TenantID.String())
	if err == nil && !free {
		return nil, &problem{kind: kindLimitReached, detail: "A dry run of yours is under way. Wait until it is answered."}
	}
	if err == nil {
		err = tx.QueryRow(ctx, "select now()").Scan(&filter.FinishedBy)
	}
	if err != nil {
		return nil, err
	}
	count, err := postgres.CountRedeliveries(ctx, tx, filter, time.Now().Add(countFor))
	if err != nil {
		return nil, err
	}
	return openapi.CreateRedeliveryJob200JSONResponse{
		Total: count.Redeliver + count.Redelivered + count.Erased + count.Removed, WouldRedeliver: count.Redeliver,
		WouldSkip: openapi.RedeliverySkips{Redelivered: count.Redelivered, PayloadErased: count.Erased, DestinationRemoved: count.Removed},
		Complete:  count.Complete,
	}, nil
}

func createJob(ctx context.Context, q *db.Queries, job db.InsertRedeliveryJobParams) (openapi.CreateRedeliveryJobResponseObject, error) {
	if err := q.LockRedeliveryJobs(ctx, job.TenantID.String()); err != nil {
		return nil, err
	}
	if job.KeyHash != nil {
		known, err := jobOfKey(ctx, q, &job)
		if known != nil || err != nil {
			return known, err
		}
	}
	open, err := q.CountOpenRedeliveryJobs(ctx)
	if err != nil {
		return nil, err
	}
	if open >= maxOpenJobs {
		return nil, &problem{kind: kindLimitReached, detail: fmt.Sprintf("There are %d unfinished redelivery jobs. Wait for one, or cancel one.", maxOpenJobs)}
	}
	if _, err := q.InsertRedeliveryJob(ctx, job); err != nil {
		return nil, err
	}
	return storedJob(ctx, q, job.ID)
}

// jobOfKey answers with the job that an earlier request with the same key stored; nil: there was none. Jobs are locked.
func jobOfKey(ctx context.Context, q *db.Queries, job *db.InsertRedeliveryJobParams) (openapi.CreateRedeliveryJobResponseObject, error) {
	known, err := q.RedeliveryJobOfKey(ctx, job.KeyHash)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	case !bytes.Equal(known.RequestHash, job.RequestHash):
		return nil, &problem{kind: kindKeyConflict, detail: "This Idempotency-Key was used for another redelivery job. Send a new key."}
	}
	return storedJob(ctx, q, known.ID)
}

func storedJob(ctx context.Context, q *db.Queries, jobID uuid.UUID) (openapi.CreateRedeliveryJobResponseObject, error) {
	row, err := q.GetRedeliveryJob(ctx, jobID)
	if err != nil {
		return nil, err
	}
	return openapi.CreateRedeliveryJob202JSONResponse(jobAnswer(jobRow(row))), nil
}

// ListRedeliveryJobs returns a page of jobs.
func (s *Server) ListRedeliveryJobs(ctx context.Context, request openapi.ListRedeliveryJobsRequestObject) (openapi.ListRedeliveryJobsResponseObject, error) {
	p, err := parsePage(id.Job, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	var rows []db.ListRedeliveryJobsRow
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) (err error) {
		rows, err = db.New(tx).ListRedeliveryJobs(ctx, p.before, p.limit+1)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list redelivery jobs: %w", err)
	}
	rows, more := cut(rows, p.limit)
	answer := openapi.ListRedeliveryJobs200JSONResponse{Data: []openapi.RedeliveryJob{}}
	for _, row := range rows {
		answer.Data = append(answer.Data, jobAnswer(jobRow(row)))
	}
	if more {
		answer.NextCursor = p.cursor(rows[len(rows)-1].ID)
	}
	return answer, nil
}

// GetRedeliveryJob reads one job.
func (s *Server) GetRedeliveryJob(ctx context.Context, request openapi.GetRedeliveryJobRequestObject) (openapi.GetRedeliveryJobResponseObject, error) {
	job, err := s.readJob(ctx, request.JobID, func(*db.Queries, uuid.UUID) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("get redelivery job: %w", err)
	}
	return openapi.GetRedeliveryJob200JSONResponse(job), nil
}

// CancelRedeliveryJob stops a job between two of its steps.
func (s *Server) CancelRedeliveryJob(ctx context.Context, request openapi.CancelRedeliveryJobRequestObject) (openapi.CancelRedeliveryJobResponseObject, error) {
	stopped := false
	job, err := s.readJob(ctx, request.JobID, func(q *db.Queries, jobID uuid.UUID) error {
		n, err := q.CancelRedeliveryJob(ctx, jobID)
		stopped = n == 1
		return err
	})
	if err == nil && !stopped {
		err = &problem{kind: kindFinished, detail: "The job is finished. What it made stays: cancel deliveries one by one."}
	}
	if err != nil {
		return nil, fmt.Errorf("cancel redelivery job: %w", err)
	}
	return openapi.CancelRedeliveryJob200JSONResponse(job), nil
}

// readJob reads a job after f, in one transaction.
func (s *Server) readJob(ctx context.Context, name string, f func(*db.Queries, uuid.UUID) error) (openapi.RedeliveryJob, error) {
	jobID, err := id.Job.Parse(name)
	if err != nil {
		return openapi.RedeliveryJob{}, notFound("redelivery job")
	}
	var row db.GetRedeliveryJobRow
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if err := f(q, jobID); err != nil {
			return err
		}
		row, err = q.GetRedeliveryJob(ctx, jobID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("redelivery job")
		}
		return err
	})
	return jobAnswer(jobRow(row)), err
}

func jobAnswer(row jobRow) openapi.RedeliveryJob {
	return openapi.RedeliveryJob{
		ID: id.Job.Format(row.ID), State: row.State, DestinationID: optionalID(id.Destination, row.DestinationID),
		EndpointID: optionalID(id.Endpoint, row.EndpointID), States: row.States, From: row.AcceptedFrom, Until: row.AcceptedUntil,
		RatePerSecond: int(row.RatePerSecond), Total: row.Total, Done: row.Done,
		Skipped: openapi.RedeliverySkips{Redelivered: row.SkippedRedelivered, PayloadErased: row.SkippedErased, DestinationRemoved: row.SkippedRemoved},
		Error:   row.Error, CreatedAt: row.CreatedAt, FinishedAt: row.FinishedAt,
	}
}
