"""What is masked, and what is not."""

import pickle

import pytest

from srpo_core.credentials import mask_credentials, mask_file_content, mask_parts
from srpo_core.errors import StageError, StoreError

SECRET = "Xq7/vR+2plantedSECRET0abc"


@pytest.fixture(autouse=True)
def _no_secrets_of_this_machine(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"s3://AKEY:{SECRET}@bucket/prefix: no such bucket", "s3://***@bucket/prefix: no such bucket"),
        (f"/home/me/s3:/AKEY:{SECRET}@bucket", "/home/me/s3:/***@bucket"),
        ("https://onlyatoken123@host/x.git", "https://***@host/x.git"),
        ("postgresql+asyncpg://prefect:pw@database:5432/p", "postgresql+asyncpg://***@database:5432/p"),
        (
            "https://h/o?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12",
            "https://h/o?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("denied for AKIAABCDEFGHIJKLMNOP", "denied for ***"),
        ("Bearer hf_abcdefghijklmnopqrstuvwx", "Bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----\nrest", "***\nrest"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc", "***"),
    ],
)
def test_credentials_of_a_known_form_are_masked(text, masked):
    assert mask_credentials(text) == masked
    assert mask_credentials(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix",
        "ssh://git@host/repository.git",
        "http://127.0.0.1:4200/api, mail to a@b.c",
        "https://registry.example/package@1.2",
        "set AWS_SECRET_ACCESS_KEY and HF_TOKEN",
        "the token: expected one of a, b",
    ],
)
def test_a_message_without_credentials_is_unchanged(text):
    assert mask_credentials(text) == text


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING"]
)
def test_the_value_of_a_secret_variable_is_masked_wherever_it_appears(monkeypatch, name):
    assert SECRET in mask_credentials(f"the server answered: {SECRET} is wrong")
    monkeypatch.setenv(name, SECRET)
    assert mask_credentials(f"the server answered: {SECRET} is wrong") == "the server answered: *** is wrong"


def test_an_ordinary_variable_is_not_a_secret(monkeypatch):
    monkeypatch.setenv("SRPO_CHECKOUT", "/home/me/checkout")
    assert mask_credentials("/home/me/checkout is dirty") == "/home/me/checkout is dirty"


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        (f"+    secret_access_key = {SECRET}", "+    secret_access_key = ***"),
        ("+    access_key_id = notaknownform", "+    access_key_id = ***"),
        (f'+export DB_PASSWORD="{SECRET}"', '+export DB_PASSWORD="***"'),
        (f'+  "api_key": "{SECRET}",', '+  "api_key": "***",'),
        (f"+    connection_string = Account={SECRET}", "+    connection_string = ***"),
        ("+    token = tokenizer.encode(text)", "+    token = tokenizer.encode(text)"),
        ("+    max_sequence_length: 12", "+    max_sequence_length: 12"),
        ("+  secret: ${STORE_PASSWORD:?set it}", "+  secret: ${STORE_PASSWORD:?set it}"),
    ],
)
def test_a_value_assigned_to_a_secret_name_is_masked_in_content_of_files(line, masked):
    assert mask_file_content(line) == masked


def test_an_error_never_shows_credentials_whatever_put_them_into_its_message(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for error in (StoreError(f"s3://AKEY:{SECRET}@b: {SECRET}"), StageError(f"stage x: {SECRET}", 3)):
        assert SECRET not in f"{error} {error!r} {error.args}"
        again = pickle.loads(pickle.dumps(StoreError(str(error))))
        assert SECRET not in str(again)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("cannot send to slack://T0plantedA/B0plantedB/plantedSECRET0abc/", "cannot send to ***"),
        ("posted to /services/T0plantedA/B0plantedB", "posted to /services/***/***"),
        ("the server says: plantedSECRET0abc is unknown", "the server says: *** is unknown"),
        ("the password was pass word", "the password was ***"),
        ("services at hooks.example.org:8080, notify", "services at hooks.example.org:8080, notify"),
    ],
)
def test_what_is_secret_in_the_channels_of_notifications_is_masked_and_not_their_hosts(
    monkeypatch, text, masked
):
    monkeypatch.setenv(
        "SRPO_NOTIFY",
        "slack://T0plantedA/B0plantedB/plantedSECRET0abc/ json://me:pass%20word@hooks.example.org:8080/notify",
    )
    assert mask_credentials(text) == masked


def test_a_part_of_a_channel_is_masked_in_what_its_service_answers_also_if_it_is_a_plain_word():
    said = "no route to hooks.example.org/my room"
    assert mask_parts(said, "json://hooks.example.org:80/my%20room") == "no route to ***/***"
