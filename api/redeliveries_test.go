package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const redeliveries = "/api/v1/redeliveries"

func TestADryRunCountsAndDoesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, plainEndpoint)
	var paths []string
	for range 3 {
		paths = append(paths, b.deadDelivery(t, endpoint.ID))
	}
	read[openapi.Redelivery](t, b.command(t, paths[0]+"/redeliver"), 202)
	count := func(more string) openapi.RedeliveryCount {
		t.Helper()
		return read[openapi.RedeliveryCount](t, b.post(t, redeliveries, `{"destination_id":"`+endpoint.Destinations[0].ID+`","dry_run":true`+more+`}`), 200)
	}
	want := openapi.RedeliveryCount{Total: 3, WouldRedeliver: 2, WouldSkip: openapi.RedeliverySkips{Redelivered: 1}, Complete: true}
	require.Equal(t, want, count(""))
	require.Equal(t, want, count(`,"endpoint_id":"`+endpoint.ID+`"`))
	require.Equal(t, openapi.RedeliveryCount{Complete: true}, count(`,"states":["canceled"]`))
	require.Equal(t, openapi.RedeliveryCount{Complete: true}, count(`,"from":"`+time.Now().Add(10*time.Second).Format(time.RFC3339)+`"`))
	require.Equal(t, want, count(`,"from":"1999-01-01T00:00:00+01:00","until":"2999-01-01T00:00:00Z"`))
	require.Equal(t, 4, b.count(t, "deliveries"))
	require.Zero(t, b.count(t, "redelivery_jobs"))
}

func TestRedeliveryJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, plainEndpoint)
	for range 3 {
		b.deadDelivery(t, endpoint.ID)
	}
	created := read[openapi.RedeliveryJob](t, b.post(t, redeliveries, `{"destination_id":"`+endpoint.Destinations[0].ID+`","rate_per_second":4}`), 202)
	require.Equal(t, "counting", created.State)
	require.Equal(t, []string{"dead"}, created.States)
	require.Equal(t, endpoint.Destinations[0].ID, *created.DestinationID)
	require.Nil(t, created.EndpointID)
	step := func() {
		_, err := b.owner.Exec(t.Context(), "update redelivery_jobs set next_at = now()")
		require.NoError(t, err)
		_, err = postgres.StepRedelivery(t.Context(), b.engine)
		require.NoError(t, err)
	}
	step()
	step()
	got := read[openapi.RedeliveryJob](t, b.get(t, redeliveries+"/"+created.ID), 200)
	require.Equal(t, []any{"running", int64(3), int64(2)}, []any{got.State, got.Total, got.Done})
	step()
	got = read[openapi.RedeliveryJob](t, b.get(t, redeliveries+"/"+created.ID), 200)
	require.Equal(t, []any{"done", int64(3), int64(3)}, []any{got.State, got.Total, got.Done})
	require.NotNil(t, got.FinishedAt)
	problem(t, b.command(t, redeliveries+"/"+created.ID+"/cancel"), 409, "already-finished")

	second := read[openapi.RedeliveryJob](t, b.post(t, redeliveries, `{"endpoint_id":"`+endpoint.ID+`","states":["dead","skipped"]}`), 202)
	canceled := read[openapi.RedeliveryJob](t, b.command(t, redeliveries+"/"+second.ID+"/cancel"), 200)
	require.Equal(t, "canceled", canceled.State)
	problem(t, b.command(t, redeliveries+"/"+second.ID+"/cancel"), 409, "already-finished")

	list := read[openapi.RedeliveryJobPage](t, b.get(t, redeliveries+"?limit=1"), 200)
	require.Equal(t, []openapi.RedeliveryJob{canceled}, list.Data)
	list = read[openapi.RedeliveryJobPage](t, b.get(t, redeliveries+"?cursor="+*list.NextCursor), 200)
	require.Equal(t, []openapi.RedeliveryJob{got}, list.Data)
	require.Nil(t, list.NextCursor)
}

func TestATenantHasAtMostTenOpenJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := `{"endpoint_id":"` + b.endpoint(t) + `"}`
	for range 10 {
		read[openapi.RedeliveryJob](t, b.post(t, redeliveries, body), 202)
	}
	problem(t, b.post(t, redeliveries, body), 409, "limit-reached")
	require.Equal(t, 10, b.count(t, "redelivery_jobs"))
}

// Each names the member that is wrong, and stores nothing.
func TestWrongJobsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, another := b.createEndpoint(t, plainEndpoint), b.createEndpoint(t, plainEndpoint)
	other := id.Destination.Format(id.New())
	for members, field := range map[string]string{
		``:                                 "destination_id",
		`"destination_id":"` + other + `"`: "destination_id",
		`"destination_id":"dst_x"`:         "destination_id",
		`"destination_id":7`:               "destination_id",
		`"endpoint_id":"` + id.Endpoint.Format(id.New()) + `"`:                                      "endpoint_id",
		`"endpoint_id":"` + endpoint.ID + `","destination_id":"` + another.Destinations[0].ID + `"`: "destination_id",
		`E,"states":[]`:                    "states",
		`E,"states":["pending"]`:           "states[0]",
		`E,"states":["dead","dead"]`:       "states[1]",
		`E,"states":"dead"`:                "states",
		`E,"rate_per_second":0`:            "rate_per_second",
		`E,"rate_per_second":1001`:         "rate_per_second",
		`E,"rate_per_second":1.5`:          "rate_per_second",
		`E,"from":"yesterday"`:             "from",
		`E,"from":{}`:                      "from",
		`E,"from":1700000000`:              "from",
		`E,"until":"2026-13-01T00:00:00Z"`: "until",
		`E,"from":"2026-11-24T00:00:00Z","until":"2026-11-24T00:00:00Z"`: "until",
		`E,"until":"2001-01-01T00:00:00Z"`:                               "from",
		`E,"from":"2999-01-01T00:00:00Z"`:                                "from",
		`E,"dry_run":"yes"`:                                              "dry_run",
		`E,"limit":5`:                                                    "limit",
	} {
		body := "{" + strings.Replace(members, "E", `"endpoint_id":"`+endpoint.ID+`"`, 1) + "}"
		p := problem(t, b.post(t, redeliveries, body), 422, "invalid-field")
		require.NotNil(t, p.Field, body)
		require.Equal(t, field, *p.Field, body)
	}
	require.Zero(t, b.count(t, "redelivery_jobs"))
}

func TestJobsOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, plainEndpoint)
	job := read[openapi.RedeliveryJob](t, b.post(t, redeliveries, `{"endpoint_id":"`+endpoint.ID+`"}`), 202)
	_, b.key = b.addTenant(t, "Another Bank")
	for _, name := range []string{job.ID, id.Job.Format(id.New()), "job_x"} {
		problem(t, b.get(t, redeliveries+"/"+name), 404, "not-found")
		problem(t, b.command(t, redeliveries+"/"+name+"/cancel"), 404, "not-found")
	}
	require.Empty(t, read[openapi.RedeliveryJobPage](t, b.get(t, redeliveries), 200).Data)
	for field, value := range map[string]string{"endpoint_id": endpoint.ID, "destination_id": endpoint.Destinations[0].ID} {
		p := problem(t, b.post(t, redeliveries, fmt.Sprintf(`{%q:%q,"dry_run":true}`, field, value)), 422, "invalid-field")
		require.Equal(t, field, *p.Field)
	}
	require.Equal(t, 1, b.count(t, "redelivery_jobs where finished_at is null"))
}

// A client that heard no answer asks again, and there is one job.
func TestARedeliveryJobIsAskedForAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, plainEndpoint)
	b.deadDelivery(t, endpoint.ID)
	ask := func(auth, key, body string) answer {
		return b.do(t, http.MethodPost, redeliveries, strings.NewReader(body), "Authorization", "Bearer "+auth, "Idempotency-Key", key)
	}
	body := `{"destination_id":"` + endpoint.Destinations[0].ID + `","rate_per_second":4}`
	dry := strings.Replace(body, "{", `{"dry_run":true,`, 1)
	require.Equal(t, http.StatusOK, ask(b.key, "k", dry).status)

	var asking sync.WaitGroup
	answers := make([]answer, 8)
	for i := range answers {
		asking.Go(func() { answers[i] = ask(b.key, "k", body) })
	}
	asking.Wait()
	first := read[openapi.RedeliveryJob](t, answers[0], 202)
	for _, a := range answers {
		require.Equal(t, first, read[openapi.RedeliveryJob](t, a, 202))
	}
	require.Equal(t, 1, b.count(t, "redelivery_jobs"))
	require.Equal(t, http.StatusOK, ask(b.key, "k", dry).status, "a dry run has nothing to do with it")

	problem(t, ask(b.key, "k", strings.Replace(body, `_second":4`, `_second":5`, 1)), 409, "idempotency-conflict")
	for range 9 {
		read[openapi.RedeliveryJob](t, b.post(t, redeliveries, body), 202)
	}
	problem(t, ask(b.key, "another", body), 409, "limit-reached")
	read[openapi.RedeliveryJob](t, b.command(t, redeliveries+"/"+first.ID+"/cancel"), 200)
	require.Equal(t, "canceled", read[openapi.RedeliveryJob](t, ask(b.key, "k", body), 202).State, "as it stands by then, also when no more may be made")

	_, other := b.addTenant(t, "another")
	require.Equal(t, http.StatusUnprocessableEntity, ask(other, "k", body).status, "a key is its tenant's, and so is the destination")
	for _, key := range []string{"", strings.Repeat("k", 256)} {
		require.Equal(t, "Idempotency-Key", *problem(t, ask(b.key, key, body), 400, "invalid-parameter").Field)
	}

	_, err := postgres.ForgetCommands(t.Context(), b.engine, time.Hour)
	require.NoError(t, err)
	require.Equal(t, first.ID, read[openapi.RedeliveryJob](t, ask(b.key, "k", body), 202).ID)
	_, err = postgres.ForgetCommands(t.Context(), b.engine, 0)
	require.NoError(t, err)
	require.NotEqual(t, first.ID, read[openapi.RedeliveryJob](t, ask(b.key, "k", body), 202).ID, "a week later it is a new request")
}
