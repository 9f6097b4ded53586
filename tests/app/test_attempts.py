"""Passwords cannot be guessed by trying many."""

from app.test_guard import call

from dalle_mini_impl.app.attempts import MAX_ADDRESSES, MAX_WRONG, WITHIN_SECONDS, Attempts
from dalle_mini_impl.app.guard import PageGuard


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_waits_after_many_wrong_passwords_and_others_do_not():
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(MAX_WRONG):
        assert attempts.begin("a") == 0
        clock.now += 1
    assert attempts.begin("a") == WITHIN_SECONDS - MAX_WRONG
    assert attempts.begin("b") == 0
    clock.now += WITHIN_SECONDS - MAX_WRONG
    assert attempts.begin("a") == 0
    assert attempts.begin("a") == 1


def test_the_right_password_begins_anew_and_memory_is_bounded():
    attempts = Attempts(Clock())
    for _ in range(3 * MAX_WRONG):
        assert attempts.begin("a") == 0
        attempts.succeed("a")
    for number in range(MAX_ADDRESSES + 5):
        attempts.begin(str(number))
    assert len(attempts._wrong) == MAX_ADDRESSES


def test_the_page_answers_429_and_tells_when_to_try_again():
    statuses = iter([400] * MAX_WRONG + [200] * 5)

    async def login(scope, receive, send):
        await send({"type": "http.response.start", "status": next(statuses), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    clock = Clock()
    guard = PageGuard(login, None, own_machine_only=False, attempts=Attempts(clock))
    for _ in range(MAX_WRONG):
        assert call("/login", "POST", guard=guard)[0] == 400
    status, headers, text = call("/login", "POST", guard=guard)
    assert (status, headers[b"retry-after"]) == (429, b"600")
    assert text.startswith("expected at most 10 wrong passwords")
    assert call("/login", "POST", guard=guard, client=("10.0.0.2", 1))[0] == 200
    clock.now += WITHIN_SECONDS
    for _ in range(3):
        assert call("/login", "POST", guard=guard)[0] == 200
