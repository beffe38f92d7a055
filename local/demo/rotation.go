package demo

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/payloads"
	"github.com/kapsel-io/kapsel/webhook"
)

// overlap is how long an old secret of GitHub's stays good, in seconds.
const overlap = 3

// clockStep is more than times are rounded by.
const clockStep = 10 * time.Millisecond

// rotateSecrets exchanges the secret by which GitHub signs, and the one by which Kapsel signs for the healthy receiver, as one
// would that leaked: nobody has to be told at the same moment, and in the end the old one is worth nothing.
func (r *run) rotateSecrets(ctx context.Context) error {
	all, err := payloads.All()
	if err != nil {
		return err
	}
	first := len(r.sent)
	if err := r.rotateSigningSecret(ctx); err != nil {
		return err
	}
	old, fresh := r.secret, []byte(rand.Text())
	ends, err := r.rotateSourceSecret(ctx, fresh)
	if err != nil {
		return err
	}
	r.say("GitHub has a new one; for %d s the old one is good too", overlap)
	for _, s := range []struct {
		how      string
		payload  payloads.Payload
		secret   []byte
		accepted bool
		since    time.Time
	}{
		{"signed by the old one", all[1], old, true, time.Time{}},
		{"signed by the new one", all[2], fresh, true, time.Time{}},
		{fmt.Sprintf("%d s later, by the old one", overlap), all[3], old, false, ends},
		{"by a foreign one", all[3], []byte(rand.Text()), false, ends},
		{"by the new one", all[3], fresh, true, ends},
	} {
		if err := pause(ctx, time.Until(s.since)); err != nil {
			return err
		}
		if err := r.sendSigned(ctx, s.payload, s.secret, s.how, s.accepted); err != nil {
			return err
		}
	}
	r.events = append(r.events, make([]client.Event, len(r.sent)-first)...)
	if err := r.awaitEvents(ctx, first, func(int, int) {}); err != nil {
		return err
	}
	return r.checkBothSigned(first)
}

// rotateSigningSecret makes Kapsel sign by another secret too what it sends to the healthy receiver.
func (r *run) rotateSigningSecret(ctx context.Context) error {
	const anHour = 3600
	answer, err := r.api.AddSigningSecretWithResponse(ctx, r.endpoint.Destinations[0].ID, client.NewSigningSecret{ExpireOthersInSeconds: ptr(int64(anHour))})
	if err != nil {
		return err
	}
	if answer.JSON201 == nil || answer.JSON201.Secret == nil {
		return fmt.Errorf("the signing secret was not exchanged: %s", answer.Body)
	}
	r.receivers.healthy.trust(nil, answer.JSON201.Secret)
	return nil
}

// rotateSourceSecret adds a secret by which GitHub may sign, and returns when the old one ends.
func (r *run) rotateSourceSecret(ctx context.Context, fresh []byte) (ends time.Time, err error) {
	for _, one := range r.receivers.each() {
		one.trust(fresh, nil)
	}
	answer, err := r.api.AddSecretWithResponse(ctx, r.endpoint.ID, client.NewSecret{Secret: string(fresh), ExpireOthersInSeconds: ptr(int64(overlap))})
	if err != nil {
		return ends, err
	}
	if answer.JSON201 == nil {
		return ends, fmt.Errorf("the secret was not exchanged: %s", answer.Body)
	}
	listed, err := r.api.ListSecretsWithResponse(ctx, r.endpoint.ID)
	if err != nil {
		return ends, err
	}
	if listed.JSON200 == nil || len(listed.JSON200.Data) != 2 || listed.JSON200.Data[0].ExpiresAt == nil || listed.JSON200.Data[1].ExpiresAt != nil {
		return ends, fmt.Errorf("not just the old one of two secrets expires: %s", listed.Body)
	}
	return listed.JSON200.Data[0].ExpiresAt.Add(clockStep), nil
}

// sendSigned sends a webhook that is signed with a secret, and checks whether it is accepted.
func (r *run) sendSigned(ctx context.Context, payload payloads.Payload, secret []byte, how string, accepted bool) error {
	s := sent{Payload: payload, guid: uuid.NewString()}
	answer, err := r.post(ctx, payload, s.guid, webhook.SignGitHub(secret, payload.Body))
	if err != nil {
		return err
	}
	want, says := http.StatusUnauthorized, answer.Title
	if accepted {
		want, says = http.StatusOK, "accepted"
		s.eventID = answer.EventID
		r.sent = append(r.sent, s)
	}
	if answer.status != want {
		return fmt.Errorf("%s: answered %d: %s", how, answer.status, answer.body)
	}
	r.say("%-29s %d  %s", how, answer.status, says)
	return nil
}

// checkBothSigned checks that the healthy receiver could verify each of these events by its old and by its new secret.
func (r *run) checkBothSigned(first int) error {
	for _, event := range r.events[first:] {
		i := slices.IndexFunc(event.Deliveries, func(d client.Delivery) bool { return d.DestinationID == r.endpoint.Destinations[0].ID })
		if i < 0 {
			return fmt.Errorf("event %s has no delivery to the healthy receiver", event.ID)
		}
		if requests, signers := r.receivers.healthy.saw(event.Deliveries[i].ID); requests != 1 || signers != 2 {
			return fmt.Errorf("delivery %s: %d requests, the last one signed by %d of two secrets", event.Deliveries[i].ID, requests, signers)
		}
	}
	if err := r.checkSignatures(); err != nil {
		return err
	}
	r.say("The healthy receiver has a new one too: what it gets is signed by both, and both fit.")
	return nil
}
