package webhook_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// verify checks a webhook by the keys that its receiver was given: whsec_… for v1, whpk_… for v1a. One of them must have
// signed it, so that an old and a new one can be accepted side by side.
func verify(header http.Header, body []byte, keys []string, now time.Time) error {
	id, timestamp := header.Get("Webhook-Id"), header.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return errors.New("the webhook has no timestamp of the last five minutes")
	}
	message := []byte(id + "." + timestamp + "." + string(body))
	for _, signature := range strings.Fields(header.Get("Webhook-Signature")) {
		version, encoded, _ := strings.Cut(signature, ",")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			continue // of a version that isn't known here
		}
		for _, key := range keys {
			if signedBy(key, version, message, signature) {
				return nil
			}
		}
	}
	return errors.New("none of the keys has signed the webhook")
}

func signedBy(key, version string, message, signature []byte) bool {
	kind, encoded, _ := strings.Cut(key, "_")
	bytes, err := base64.StdEncoding.DecodeString(encoded)
	switch {
	case err != nil:
		return false
	case kind == "whsec" && version == "v1":
		mac := hmac.New(sha256.New, bytes)
		mac.Write(message)
		return hmac.Equal(mac.Sum(nil), signature)
	case kind == "whpk" && version == "v1a":
		return len(bytes) == ed25519.PublicKeySize && ed25519.Verify(bytes, message, signature)
	default:
		return false
	}
}
