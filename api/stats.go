package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

const (
	mostWaiting  = 10_000 // are counted
	sampleRows   = 1_000
	sampleWindow = 24 * time.Hour
	sampleChunk  = 250 // deliveries whose attempts are read by one statement
)

// GetDestinationStats counts what waits, and judges a destination by a sample of its newest deliveries: exact figures would
// need counters that every delivery writes.
func (s *Server) GetDestinationStats(ctx context.Context, request openapi.GetDestinationStatsRequestObject) (openapi.GetDestinationStatsResponseObject, error) {
	destination, err := id.Destination.Parse(request.DestinationID)
	if err != nil {
		return nil, notFound("destination")
	}
	var answer openapi.GetDestinationStats200JSONResponse
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		if _, err := q.EndpointOfDestination(ctx, destination); errors.Is(err, pgx.ErrNoRows) {
			return notFound("destination")
		} else if err != nil {
			return err
		}
		n, err := q.CountWaiting(ctx, destination, mostWaiting+1)
		if err != nil {
			return err
		}
		answer.Waiting, answer.WaitingIsMore = int(min(n, mostWaiting)), n > mostWaiting
		oldest, err := q.OldestDue(ctx, destination)
		if err == nil {
			answer.OldestDueAt = inUTC(&oldest)
		} else if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		answer.Sample, err = sampleOf(ctx, q, tenant, destination)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get destination stats: %w", err)
	}
	return answer, nil
}

// sampleOf reads the newest deliveries to a destination and their attempts.
func sampleOf(ctx context.Context, q *db.Queries, tenant, destination uuid.UUID) (openapi.DestinationSample, error) {
	since := time.Now().Add(-sampleWindow)
	in := newSpan(page{before: uuid.Max}, tenant, &since, nil)
	sample := openapi.DestinationSample{States: map[string]int{}}
	deliveries, err := searchDeliveries(q, in, sampleRows, db.SearchDeliveriesParams{DestinationID: &destination}).run(ctx)
	if err != nil {
		return sample, err
	}
	var durations []int64
	for chunk := range slices.Chunk(deliveries.rows, sampleChunk) {
		attempts, err := attemptsOf(ctx, q, chunk)
		if err != nil {
			return sample, err
		}
		for _, a := range attempts {
			if a.Number == id.Decision {
				continue
			}
			durations = append(durations, a.DurationMs)
			if last := sample.LastFailure; a.Outcome != string(delivery.OutcomeDelivered) && (last == nil || a.AttemptedAt.After(last.AttemptedAt)) {
				answer := attemptAnswer(a)
				sample.LastFailure = &answer
			}
		}
	}
	for _, d := range deliveries.rows {
		sample.States[d.State]++
		created := id.Time(d.ID)
		sample.Since = &created // the last row is the oldest
	}
	sample.Deliveries, sample.Attempts = len(deliveries.rows), len(durations)
	if len(durations) > 0 {
		slices.Sort(durations)
		sample.DurationP50Ms, sample.DurationP95Ms = percentile(durations, 50), percentile(durations, 95)
	}
	return sample, nil
}

// percentile returns the nearest-rank percentile of sorted values.
func percentile(sorted []int64, percent int) *int64 {
	return &sorted[(len(sorted)*percent+99)/100-1]
}
