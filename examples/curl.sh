#!/usr/bin/env bash
# A score, an abstention, a stream with token risks, and the risk of a given text, with curl alone.
#
#   HGUARD_URL       the server (default: http://127.0.0.1:8000)
#   HGUARD_API_KEY   a key, where the server wants one
#   HGUARD_MODEL     what it serves (default: atlas)
set -euo pipefail

url=${HGUARD_URL:-http://127.0.0.1:8000}
model=${HGUARD_MODEL:-atlas}

ask() { # path, body
  curl --silent --show-error --no-buffer --fail-with-body "$url$1" \
    --header 'content-type: application/json' \
    ${HGUARD_API_KEY:+--header "authorization: Bearer $HGUARD_API_KEY"} \
    --data "$2"
  echo
}

echo '# The answer (of a server that withholds, perhaps a refusal), and how likely it is wrong'
ask /v1/chat/completions '{
  "model": "'"$model"'", "temperature": 0,
  "messages": [{"role": "user", "content": "Which country is Qolmarinda in?"}]}'

echo '# The same question; from the threshold on, the answer is withheld'
ask /v1/chat/completions '{
  "model": "'"$model"'", "temperature": 0,
  "messages": [{"role": "user", "content": "Which country is Qolmarinda in?"}],
  "hallucination": {"mode": "abstain", "target_fpr": 0.05}}'

echo '# A stream: choices[].logprobs.content[].risk, and the verdict beside finish_reason'
ask /v1/chat/completions '{
  "model": "'"$model"'", "temperature": 0, "stream": true, "logprobs": true,
  "messages": [{"role": "user", "content": "Which country is Qolmarinda in?"}]}'

echo '# Two given answers to one question; nothing is generated'
ask /risk '[
  {"model": "'"$model"'", "messages": [{"role": "user", "content": "Where is Kandy?"}], "response": "It is in Sri Lanka."},
  {"model": "'"$model"'", "messages": [{"role": "user", "content": "Where is Kandy?"}], "response": "It is in Japan."}]'
