package main

// Token, one-time passwords, sealing and envelope (spec 1, 2, 3).

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"go.yaml.in/yaml/v2"
)

type otp struct {
	Interval int64  `yaml:"interval"`
	Key      string `yaml:"key"`
	Length   int    `yaml:"length"`
}

type token struct {
	OTP struct {
		DHT    otp `yaml:"dht"`
		Crypto otp `yaml:"crypto"`
	} `yaml:"otp"`
	Room           string `yaml:"room"`
	Rendezvous     string `yaml:"rendezvous"`
	MDNS           string `yaml:"mdns"`
	MaxMessageSize int    `yaml:"max_message_size"`
}

func parseToken(text string) (*token, error) {
	document, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	t := &token{}
	if err := yaml.Unmarshal(document, t); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if t.OTP.Crypto.Interval == 0 {
		return nil, errors.New("token: otp.crypto.interval is 0")
	}
	return t, nil
}

// code is the digest's text, cut to the length; the secret is the text as it stands (spec 2.1).
func (o otp) code(secret string, now time.Time) string {
	var counter [8]byte
	binary.BigEndian.PutUint64(counter[:], uint64(now.Unix())/uint64(o.Interval))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(counter[:])
	length := o.Length
	if length <= 0 {
		length = 6
	}
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))[:length]
}

func md5hex(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

func (t *token) sealKey(now time.Time) string {
	return md5hex(t.OTP.Crypto.code(t.OTP.Crypto.Key, now))
}

func (t *token) topic(now time.Time, salt string) string {
	return md5hex(t.OTP.Crypto.code(t.Room, now) + salt)
}

func (t *token) rendezvous(now time.Time) string {
	if t.OTP.DHT.Key == "" {
		return t.Rendezvous
	}
	o := t.OTP.DHT
	if o.Length == 0 {
		o.Length = 12
	}
	return md5hex(o.code(o.Key, now))
}

func gcm(key string) (cipher.AEAD, error) {
	var raw [32]byte
	copy(raw[:], key)
	block, err := aes.NewCipher(raw[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func seal(key string, plain []byte) (string, error) {
	aead, err := gcm(key)
	if err != nil {
		return "", err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return "", err
	}
	return hex.EncodeToString(aead.Seal(nonce, nonce, plain, nil)), nil
}

func unseal(key, text string) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	sealed, _ := hex.DecodeString(text) // the valid prefix is kept, as EdgeVPN does
	if len(sealed) < aead.NonceSize() {
		return nil, errors.New("sealed text is too short")
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
}

// envelope is what a pubsub message carries.
type envelope struct {
	Message     string
	SenderID    string
	Annotations map[string]any
}

func gzipped(plain []byte) []byte {
	var out bytes.Buffer
	writer := gzip.NewWriter(&out)
	_, _ = writer.Write(plain) // memory does not fail
	_ = writer.Close()
	return out.Bytes()
}

// gunzipLimit keeps a test that goes wrong from filling the machine.
const gunzipLimit = 256 << 20

func gunzipped(data []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(reader, gunzipLimit))
}

func decodeStrict(raw []byte, into any) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}
	delete(object, "id")
	delete(object, "do")
	rest, err := json.Marshal(object)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(rest))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}
