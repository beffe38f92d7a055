package webhook

import (
	"crypto/hmac"
	"encoding/hex"
	"fmt"
	"strings"
)

// stripeHeader is documented under "Verify webhook signatures manually" (https://docs.stripe.com/webhooks/signature):
// t=<Unix seconds>, and v1=<hex of HMAC-SHA-256(secret, t.body)> once for each secret while one is rolled. Other
// elements, such as the v0 of test events, are to be ignored.
const stripeHeader = "Stripe-Signature"

var stripe = HMAC{Header: stripeHeader, Signed: "{timestamp}.{body}"}

func verifyStripe(_ Source, r request) error {
	value, err := r.only(stripeHeader)
	if err != nil {
		return err
	}
	timestamp, signatures, err := parseStripe(value)
	if err != nil {
		return err
	}
	at, err := parseTimestamp(timestamp)
	if err != nil {
		return err
	}
	before, matched := stripe.before("", timestamp), false
	for _, secret := range r.secrets {
		mac := stripe.mac(secret, before, r.body)
		for _, signature := range signatures {
			matched = hmac.Equal(signature, mac) || matched // no early return: all are compared
		}
	}
	if !matched {
		return fmt.Errorf("header %s: %w", stripeHeader, ErrBadSignature)
	}
	return r.fresh(at)
}

// parseStripe returns the one timestamp and the v1 signatures. One that isn't hexadecimal matches nothing.
func parseStripe(value string) (timestamp string, signatures [][]byte, err error) {
	seen := 0
	for element := range strings.SplitSeq(value, ",") {
		switch name, value, _ := strings.Cut(element, "="); name {
		case "t":
			if timestamp != "" {
				return "", nil, fmt.Errorf("header %s has several timestamps: %w", stripeHeader, ErrBadSignature)
			}
			timestamp = value
		case "v1":
			if seen++; seen > maxSignatures {
				return "", nil, fmt.Errorf("header %s has more than %d signatures: %w", stripeHeader, maxSignatures, ErrBadSignature)
			}
			if signature, err := hex.DecodeString(value); err == nil {
				signatures = append(signatures, signature)
			}
		}
	}
	if timestamp == "" || seen == 0 {
		return "", nil, fmt.Errorf("header %s has no t or no v1: %w", stripeHeader, ErrNoSignature)
	}
	return timestamp, signatures, nil
}
