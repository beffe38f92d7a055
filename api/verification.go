package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/webhook"
)

// parseVerification returns it also in the form in which it is stored. The problem names the first member that is wrong.
func parseVerification(v openapi.Verification) (webhook.Source, json.RawMessage, error) {
	source, err := sourceOf(v)
	if err == nil {
		err = source.Validate()
	}
	if err != nil {
		return source, nil, invalidBecause("verification", err)
	}
	if v.ToleranceSeconds != nil && *v.ToleranceSeconds == 0 { // which would mean the default
		return source, nil, invalidField("verification.tolerance_seconds", "must be 1 to %d, not 0", int(webhook.MaxTolerance/time.Second))
	}
	stored, err := json.Marshal(source)
	if err != nil {
		return source, nil, fmt.Errorf("write verification: %w", err)
	}
	return source, stored, nil
}

func sourceOf(v openapi.Verification) (webhook.Source, error) {
	source := webhook.Source{Scheme: webhook.Scheme(v.Scheme), ToleranceSeconds: value(v.ToleranceSeconds)}
	if v.Hmac != nil {
		source.HMAC = &webhook.HMAC{
			Header:          v.Hmac.Header,
			Algorithm:       string(value(v.Hmac.Algorithm)),
			Encoding:        string(value(v.Hmac.Encoding)),
			Prefix:          value(v.Hmac.Prefix),
			Signed:          value(v.Hmac.Signed),
			TimestampHeader: value(v.Hmac.TimestampHeader),
			IDHeader:        value(v.Hmac.IDHeader),
		}
	}
	if v.Standard != nil {
		source.Standard = &webhook.Standard{Headers: string(value(v.Standard.Headers))}
	}
	if v.APIKey != nil {
		source.APIKey = &webhook.APIKey{Header: v.APIKey.Header, Prefix: value(v.APIKey.Prefix)}
	}
	if v.Handshake == nil {
		return source, nil
	}
	var err error
	source.Handshake, err = webhook.NewHandshake(webhook.HandshakeType(v.Handshake.Type), value(v.Handshake.VerifyToken))
	return source, err
}

// verificationAnswer leaves out the hash of Meta's verify token: the generated type has no member for it.
func verificationAnswer(stored json.RawMessage) (openapi.Verification, error) {
	var answer openapi.Verification
	err := json.Unmarshal(stored, &answer)
	return answer, err
}

func secretBytes(secrets []string) [][]byte {
	var list [][]byte
	for _, secret := range secrets {
		list = append(list, []byte(secret))
	}
	return list
}
