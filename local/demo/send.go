package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/payloads"
	"github.com/kapsel-io/kapsel/webhook"
)

// sent is a webhook that was accepted.
type sent struct {
	payloads.Payload
	eventID string
	guid    string // X-GitHub-Delivery
}

// deadAttempts is how often the dead receiver is tried.
const deadAttempts = 4

func (r *run) prepare(ctx context.Context) error {
	if err := r.newClient(); err != nil {
		return err
	}
	r.secret = []byte(rand.Text())
	var err error
	if r.receivers, err = startReceivers(r.secret); err != nil {
		return err
	}
	retries := client.Schedule{Type: ptr(client.ScheduleTypeList), DelaysMs: &[]int64{250, 500, 1000}}
	never := client.CircuitSettings{Off: ptr(true)} // else a receiver that keeps failing would be left alone for 30 s
	answer, err := r.api.CreateEndpointWithResponse(ctx, client.NewEndpoint{
		Name:         "GitHub",
		Verification: client.Verification{Scheme: client.VerificationSchemeGithub},
		Secrets:      &[]string{string(r.secret)},
		Duplicates:   &client.Duplicates{Source: ptr(client.DuplicatesSourceHeader), Header: ptr("X-GitHub-Delivery")},
		Destinations: []client.NewDestination{
			{URL: r.receivers.healthy.url, Schedule: &retries},
			{URL: r.receivers.flaky.url, Schedule: &retries, Circuit: &never},
			{URL: r.receivers.dead.url, Schedule: &retries, Circuit: &never},
			{URL: r.receivers.choosy.url, Schedule: &retries, Filter: &client.Filter{Expression: ptr(choosyFilter)}},
		},
	})
	if err != nil {
		return err
	}
	if answer.JSON201 == nil {
		return fmt.Errorf("the endpoint was refused: %s", answer.Body)
	}
	r.endpoint = *answer.JSON201
	for i, one := range r.receivers.each() {
		one.trust(nil, r.endpoint.Destinations[i].SigningSecret)
	}
	r.say("healthy  %s   answers 200", r.receivers.healthy.url)
	r.say("flaky    %s   answers 503 twice, then 200", r.receivers.flaky.url)
	r.say("dead     %s   answers 500; it is tried %d times", r.receivers.dead.url, deadAttempts)
	r.say("choosy   %s   answers 200; its filter is %s", r.receivers.choosy.url, choosyFilter)
	r.say("endpoint %s/ingest/%s", r.APIURL, r.endpoint.ID)
	return nil
}

func (r *run) sendAll(ctx context.Context) error {
	all, err := payloads.All()
	if err != nil {
		return err
	}
	kinds := map[string]bool{}
	for i, payload := range all {
		s := sent{Payload: payload, guid: uuid.NewString()}
		answer, err := r.post(ctx, payload, s.guid, webhook.SignGitHub(r.secret, payload.Body))
		if err != nil {
			return err
		}
		if answer.status != http.StatusOK {
			return fmt.Errorf("payload %d was answered %d: %s", i+1, answer.status, answer.body)
		}
		s.eventID = answer.EventID
		r.sent = append(r.sent, s)
		kinds[payload.Event] = true
		r.progress(i+1, len(all), "accepted")
	}
	r.say("%d kinds of event; each answer 200 came after the webhook was committed in Postgres.", len(kinds))
	return nil
}

// sendWrong sends what must be refused or recognized, and checks that it was.
func (r *run) sendWrong(ctx context.Context) error {
	first := r.sent[0]
	forged, err := r.post(ctx, first.Payload, uuid.NewString(), webhook.SignGitHub([]byte("not the secret"), first.Body))
	if err != nil {
		return err
	}
	if forged.status != http.StatusUnauthorized {
		return fmt.Errorf("a forged signature was answered %d", forged.status)
	}
	r.say("a forged signature            401  %s", forged.Title)
	again, err := r.post(ctx, first.Payload, first.guid, webhook.SignGitHub(r.secret, first.Body))
	if err != nil {
		return err
	}
	if again.status != http.StatusOK || !again.duplicate || again.EventID != first.eventID {
		return fmt.Errorf("a webhook that came again was answered %d with event %s", again.status, again.EventID)
	}
	r.say("the same delivery once more   200  Kapsel-Duplicate: true, the first event's ID, nothing stored")
	return nil
}

// ingested is the answer to a webhook: an event's ID, or a problem.
type ingested struct {
	EventID   string `json:"event_id"`
	Title     string `json:"title"`
	status    int
	duplicate bool
	body      []byte
}

// post sends a webhook as GitHub does.
func (r *run) post(ctx context.Context, payload payloads.Payload, guid, signature string) (ingested, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.APIURL+"/ingest/"+r.endpoint.ID, bytes.NewReader(payload.Body))
	if err != nil {
		return ingested{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "GitHub-Hookshot/"+hex.EncodeToString([]byte("demo"))[:7])
	req.Header.Set("X-GitHub-Event", payload.Event)
	req.Header.Set("X-GitHub-Delivery", guid)
	req.Header.Set("X-Hub-Signature-256", signature)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ingested{}, err
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return ingested{}, err
	}
	answer := ingested{status: res.StatusCode, duplicate: res.Header.Get("Kapsel-Duplicate") == "true", body: body}
	if err := json.Unmarshal(body, &answer); err != nil {
		return ingested{}, fmt.Errorf("read the answer %q: %w", body, err)
	}
	return answer, nil
}

func ptr[T any](v T) *T { return &v }
