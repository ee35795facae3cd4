"""What mail servers, mail programs and machines put beside the writer's words, and what only looks like it."""

import pytest

from enrichment.text import model_text, read_ticket

OWN = "The lift on the second floor still stops between two floors, and the alarm bell stays silent."
MORE = "Please send somebody who can look at the motor this week."


def _is_only_own(body: str) -> None:
    assert model_text("Lift", body) == f"Lift. {OWN}"


def _is_own_and_more(body: str) -> None:
    assert model_text("Lift", body) == f"Lift. {OWN}\n{MORE}"


def _stays(body: str) -> None:
    text = model_text("Lift", body)
    assert all(line.strip() in text for line in body.split("\n")), text


# -- banners -----------------------------------------------------------------------------------------------------------

BANNERS = [
    (
        "CAUTION: This email originated from outside of the organization. Do not click links or open attachments unless "
        "you "
        "recognize the sender and know the content is safe."
    ),
    "CAUTION: This message came from outside our company. Be careful with links and attachments.",
    "[EXTERNAL]",
    "[EXTERNAL EMAIL]",
    "*** EXTERNAL EMAIL ***",
    "EXTERNAL SENDER",
    "External Email: This message was sent from outside the company. Please use caution when opening attachments.",
    "WARNING: This email comes from an external sender. Do not open attachments from people you do not know.",
    (
        "EXTERNAL EMAIL - This email was sent by a person from outside your organization. Exercise caution when clicking "
        "links."
    ),
    "This Message Is From an External Sender",
    "CAUTION: External email. Do not reply to it, and do not open its attachments unless you trust the sender.",
    "External message! Please avoid clicking on links in it.",
    "You don't often get email from facility@tower.example. Learn why this is important",
    (
        "ACHTUNG: Diese E-Mail stammt von einem externen Absender. Klicken Sie nicht auf Links und öffnen Sie keine "
        "Anhänge."
    ),
    "Vorsicht: Diese E-Mail kommt von außerhalb des Unternehmens. Bitte öffnen Sie keine Anhänge unbekannter Absender.",
    "ATTENTION : ce courriel provient de l'extérieur de l'organisation. Ne cliquez pas sur les liens.",
    (
        "PRECAUCIÓN: Este correo electrónico proviene de fuera de la organización. No haga clic en enlaces ni abra "
        "adjuntos."
    ),
    "LET OP: deze e-mail komt van buiten de organisatie. Klik niet op links en open geen bijlagen.",
    "ATTENZIONE: questa e-mail proviene dall'esterno dell'organizzazione. Non cliccare sui link.",
    "ADVARSEL: Denne e-mail kommer fra en ekstern afsender. Klik ikke på links.",
    "CUIDADO: este e-mail veio de fora da organização. Não clique em links.",
]


def test_an_external_mail_that_the_writer_speaks_of() -> None:
    body = "External mail. Only one of the two mails arrived, can you look into it?"
    assert read_ticket("Mail", body).text == f"Mail. {body}"


@pytest.mark.parametrize("banner", BANNERS, ids=lambda banner: banner[:30])
def test_a_banner_above_the_mail(banner: str) -> None:
    _is_only_own(f"{banner}\n\n{OWN}")
    _is_only_own(f"\n\n{banner}\n{'-' * 40}\n{OWN}")
    _is_only_own(f"<html><body><table><tr><td>{banner}</td></tr></table><p>{OWN}</p></body></html>")


@pytest.mark.parametrize("banner", [b for b in BANNERS if b.endswith(".")], ids=lambda banner: banner[:30])
def test_a_banner_in_one_line_with_the_mail(banner: str) -> None:
    _is_only_own(f"{banner} {OWN}")


def test_a_banner_that_was_wrapped() -> None:
    _is_only_own(
        "CAUTION: This email originated from outside of the\norganization. Do not click links or open attachments\n"
        f"unless you recognize the sender.\n\n{OWN}"
    )


@pytest.mark.parametrize(
    "line",
    [
        "Caution: the external door of the lift is open.",
        "The external sender list is gone since Monday.",
        "External users cannot open the portal, and we need it today.",
        "This email address is from outside, can you add it to the list?",
        "WARNING lights are on in the cabin, do not ignore them please.",
        "Do not open the attachment, it is a picture of the motor.",
        "Important: we need the lift on Sunday.",
    ],
)
def test_what_only_looks_like_a_banner(line: str) -> None:
    _stays(f"{line}\n{OWN}")


# -- legal notices -----------------------------------------------------------------------------------------------------

NOTICES = [
    (
        "This e-mail and any attachments are confidential and intended solely for the addressee. If you are not the "
        "intended "
        "recipient, please delete it. Any views expressed are those of the author."
    ),
    (
        "CONFIDENTIALITY NOTICE: The contents of this message are privileged and intended only for the person to whom it "
        "is "
        "addressed. Any disclosure or copying is strictly prohibited."
    ),
    "If you have received this message in error, please notify us and delete it.",
    "Please consider the environment before printing this e-mail.",
    "To unsubscribe from these mails click here.",
    (
        "Diese Nachricht ist vertraulich und nur für den genannten Empfänger bestimmt. Wenn Sie sie irrtümlich erhalten "
        "haben, "
        "löschen Sie sie bitte."
    ),
    (
        "Der Inhalt dieser E-Mail ist ausschließlich für den bezeichneten Adressaten bestimmt. Jede Weitergabe ist "
        "untersagt."
    ),
    (
        "Ce message est confidentiel et exclusivement destiné à son destinataire. Si vous l'avez reçu par erreur, merci "
        "de le supprimer."
    ),
    (
        "Este mensaje es confidencial y va dirigido exclusivamente a su destinatario. Si lo ha recibido por error, "
        "elimínelo."
    ),
    (
        "Questo messaggio è riservato ed è destinato esclusivamente al destinatario. Se lo avete ricevuto per errore, "
        "cancellatelo."
    ),
    (
        "Dit bericht is vertrouwelijk en uitsluitend bestemd voor de geadresseerde. Als u het ten onrechte ontvangt, "
        "verwijder het dan."
    ),
    "Denne e-mail er fortrolig og kun beregnet til modtageren. Har du modtaget den ved en fejl, bedes du slette den.",
    "Esta mensagem é confidencial e destinada exclusivamente ao destinatário. Se a recebeu por engano, apague-a.",
]


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice[:30])
def test_a_legal_notice_below_the_mail(notice: str) -> None:
    _is_only_own(f"{OWN}\n\n{notice}")
    _is_only_own(f"{OWN}\n\nBest regards\nJohanna Weiss\n\n{notice}\n\n{notice}")
    _is_only_own(f"<p>{OWN}</p><p>{notice}</p>")
    middle = notice.index(" ", len(notice) // 2)
    _is_only_own(f"{OWN}\n\n{notice[:middle]}\n{notice[middle + 1 :]}")


@pytest.mark.parametrize(
    "line",
    [
        "I sent a confidential e-mail to the wrong recipient by mistake. Please delete this message from the server.",
        "My confidential documents were in the cabin, intended only for the landlord, and they are gone.",
        "Is the information in this message confidential? Who is the recipient of our reports?",
        "The recipient of the parcel is not at home, please delete the old address.",
        "I cannot unsubscribe from your newsletter.",
        "This message was sent to an address that I never gave you.",
        "We want to print fewer mails and to consider the environment.",
    ],
)
def test_what_only_looks_like_a_notice(line: str) -> None:
    _stays(f"{OWN}\n\n{line}")


# -- signatures --------------------------------------------------------------------------------------------------------

SIGNATURES = [
    "Best regards\nJohanna Weiss",
    "Kind regards,\nJohanna",
    "With kind regards,\n\nJohanna Weiss\nHead of Facility | Tower Ltd\nTel: +43 316 555 01\nwww.tower.example",
    "Many thanks\nJohanna Weiss, Graz",
    "Thanks, Johanna",
    "Thanks!\n\nJo",
    "Cheers,\nJo",
    "Yours faithfully,\n\nJ. Weiss\nManaging Director\nTower Ltd\n12 Main Street",
    "Sincerely yours,\nJohanna Weiss",
    "Sunny greetings from Graz\nJohanna",
    "Best,\nJ",
    "Mit freundlichen Grüßen\nJohanna Weiss",
    "Viele Grüße aus Graz\nJohanna",
    "MfG\nWeiss",
    "Freundliche Grüsse\nJohanna Weiss\nTower AG, Postfach, 8010 Graz",
    "Cordialement,\nJohanna Weiss",
    "Bien à vous,\nJohanna",
    "Saludos cordiales,\nJohanna Weiss",
    "Atentamente,\nJohanna Weiss",
    "Med venlig hilsen\nJohanna Weiss",
    "Met vriendelijke groet,\nJohanna Weiss",
    "Cordiali saluti\nJohanna Weiss",
    "Atenciosamente,\nJohanna Weiss",
    "Com os melhores cumprimentos,\nJohanna Weiss",
    "-- \nJohanna Weiss\nFacility",
    "--\nJohanna Weiss | Tower Ltd | +43 316 555 01",
    "Johanna Weiss\nHead of Facility",
    "Johanna Weiss",
    "Johanna Weiss\njw@tower.example\n+43 316 555 01",
    "Sent from my iPhone",
    "Sent from my Samsung Galaxy smartphone.",
    "Sent from Mail for Windows",
    "Get Outlook for iOS",
    "Sent from Yahoo Mail on Android",
    "Von meinem iPhone gesendet",
    "Gesendet von Outlook für Android",
    "Envoyé de mon iPhone",
    "Enviado desde mi iPhone",
    "Inviato da iPhone",
    "Verstuurd vanaf mijn iPhone",
    "Sendt fra min iPhone",
    "Enviado do meu iPhone",
]


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.replace("\n", " ")[:30])
def test_a_signature_below_the_mail(signature: str) -> None:
    _is_only_own(f"{OWN}\n\n{signature}\n")
    _is_only_own(f"{OWN}\r\n\r\n{signature}".replace("\n", "\r\n").replace("\r\r", "\r"))
    html = "<br>".join(signature.split("\n"))
    _is_only_own(f"<div>{OWN}</div><div><br></div><p>{html}</p>")


def test_a_postscript_is_the_writers() -> None:
    assert MORE in model_text("Lift", f"{OWN}\n\nRegards\nJohanna\n\nP.S. {MORE}")


@pytest.mark.parametrize(
    "line",
    [
        "Thanks for getting back.",
        "Thanks for the quick visit on Monday",
        "Kind of urgent.",
        "Best of all would be a new motor.",
        "Best to call before ten",
        "Cheers to your technician, he was great!",
        "Regards the bell, it has never worked.",
        "Thank you all for nothing",
        "Sent from my account were 300 mails that I never wrote.",
        "Get Outlook to open my calendar again, please!",
        "Very urgent",
        "URGENT",
        "Warm air comes out of the shaft.",
        "Best Western Hotel wants its money back.",
        "Tack för hjälpen, men den står still igen.",
    ],
)
def test_what_only_looks_like_a_closing(line: str) -> None:
    _stays(f"{OWN}\n{line}\nThe tenants of the fifth floor carry their shopping up the stairs every day.\n{MORE}")
    _stays(f"{OWN}\n{MORE}\n{line}")


@pytest.mark.parametrize(
    "tail",
    [
        f"Thanks\n{MORE}",
        "Thanks,\nthe bell is broken as well",
        f"--\n{MORE}",
        "We need these parts:\n\nRed Button\nBlue Lamp",
        "Best regards\nJohanna\n\nOne more thing: the light in the cellar is out since the storm, too.",
    ],
)
def test_words_below_a_closing_stay(tail: str) -> None:
    text = model_text("Lift", f"{OWN}\n\n{tail}")
    assert tail.rsplit("\n", maxsplit=1)[-1] in text


# -- stack traces ------------------------------------------------------------------------------------------------------

TRACES = {
    "python": """Traceback (most recent call last):
  File "/srv/lift/run.py", line 12, in main
    motor.start(floor)
  File "/srv/lift/motor.py", line 88, in start
    raise MotorError("no current")
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
lift.errors.MotorError: no current

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/lift/run.py", line 14, in main
    log(error)
TypeError: log() takes 2 positional arguments but 1 was given""",
    "java": """java.lang.IllegalStateException: no current
\tat com.lifts.motor.Motor.start(Motor.java:88)
\tat com.lifts.run.Main.main(Main.java:12) ~[lift.jar:3.1]
\tat java.base/java.lang.Thread.run(Thread.java:840)
Caused by: java.io.IOException: cable
\t... 12 more""",
    "java thread": 'Exception in thread "main" java.lang.NullPointerException\n\tat Lift.main(Lift.java:3)',
    "net": """System.InvalidOperationException: No current.
   at Lifts.Motor.Start(Int32 floor) in C:\\src\\Motor.cs:line 88
   at Lifts.Program.<Main>$(String[] args)
   --- End of inner exception stack trace ---
   at System.Threading.Tasks.Task.Execute()""",
    "net "
    "de": "System.NullReferenceException: Der Objektverweis fehlt.\n   bei Lifts.Motor.Start(Int32 floor) in C:\\src\\Motor.cs:Zeile 88.",
    "javascript": """Uncaught TypeError: motor is undefined
    at start (https://lifts.example/app.js:12:3)
    at async Promise.all (index 0)
    at https://lifts.example/app.js:88:1""",
    "node": """Error: no current
    at Motor.start (/srv/lift/motor.js:88:11)
    at Object.<anonymous> (/srv/lift/run.js:3:1)
    at node:internal/main/run_main_module:23:47""",
    "firefox": "TypeError: motor is undefined\nstart@https://lifts.example/app.js:12:3\n@https://lifts.example/app.js:88:1",
    "go": """panic: runtime error: index out of range [5] with length 3

goroutine 1 [running]:
main.start(0x5)
\t/srv/lift/main.go:12 +0x1d
main.main()
\t/srv/lift/main.go:88 +0x25
exit status 2""",
    "ruby": "/srv/lift/motor.rb:88:in `start': no current (MotorError)\n\tfrom /srv/lift/run.rb:3:in `<main>'",
    "php": """PHP Fatal error:  Uncaught Exception: no current in /srv/lift/motor.php:88
Stack trace:
#0 /srv/lift/run.php(12): start(5)
#1 {main}
  thrown in /srv/lift/motor.php on line 88""",
    "rust": """thread 'main' panicked at src/main.rs:12:5:
stack backtrace:
   0: lift::motor::start
             at ./src/motor.rs:88
note: run with `RUST_BACKTRACE=full` for a verbose backtrace.""",
    "gdb": "#0  0x00007f3c in start (floor=5) at motor.c:88\n#1  0x00007f3d in main () at run.c:12",
}


@pytest.mark.parametrize("language", TRACES)
def test_a_stack_trace_in_the_mail(language: str) -> None:
    _is_own_and_more(f"{OWN}\n{TRACES[language]}\n{MORE}")
    _is_own_and_more(f"{OWN}\n\n{TRACES[language]}\n\n{MORE}".replace("\n", "\r\n"))
    escaped = TRACES[language].replace("<", "&lt;")
    _is_own_and_more(f"<p>{OWN}</p><pre>{escaped}</pre><p>{MORE}</p>")
    assert " ".join(TRACES[language].split("\n")[0].split()) in model_text("", TRACES[language])


LOGS = {
    "syslog": "Nov 17 02:00:07 cabin01 liftd[4711]: fatal: no current on phase two\nNov 17 02:00:09 cabin01 kernel: motor stopped",
    "syslog iso": "2026-11-17T02:00:07.123456+01:00 cabin01 liftd[4711]: no current on phase two",
    "iso": "2026-11-17 02:00:07 ERROR no current on phase two\n2026-11-17 02:00:09 WARN door is open",
    "iso with thread": "2026-11-17 02:00:07,123 [main] ERROR com.lifts.Motor - no current on phase two",
    "iso in brackets": "[2026-11-17 02:00:07] production.ERROR: no current on phase two",
    "iso z": "2026-11-17T02:00:07Z no current on phase two\n2026-11-17T02:00:09Z door is open",
    "spring": "2026-11-17 02:00:07.123  INFO 1 --- [main] com.lifts.Motor : Starting motor",
    "level first": "[ERROR] no current on phase two\nERROR:lift.motor:no current",
    "level and time": "ERROR 2026-11-17 02:00:07 no current on phase two",
    "apache": '203.0.113.7 - - [17/Nov/2026:02:00:07 +0100] "GET /motor HTTP/1.1" 500 312',
    "nginx": "2026/11/17 02:00:07 [error] 4711#0: *1 connect() failed while reading the motor",
    "logcat": "11-17 02:00:07.123  4711  4720 E Motor: no current on phase two",
    "glog": "E1117 02:00:07.123456    4711 motor.go:88] no current on phase two",
    "kernel": "[  123.456789] motor: no current on phase two",
    "logfmt": 'time="2026-11-17T02:00:07Z" level=error msg="no current on phase two"',
    "json": '{"level":"error","time":"2026-11-17T02:00:07Z","msg":"no current on phase two"}',
    "time and level": "02:00:07.123 [main] ERROR com.lifts.Motor - no current on phase two",
    "game": "[02:00:07] [Server thread/WARN]: no current on phase two",
}


@pytest.mark.parametrize("kind", LOGS)
def test_lines_of_a_log_in_the_mail(kind: str) -> None:
    _is_own_and_more(f"{OWN}\n{LOGS[kind]}\n{MORE}")
    _is_own_and_more(f"{OWN}\n\n{LOGS[kind]}\n{LOGS[kind]}\n\n{MORE}")
    assert " ".join(LOGS[kind].split("\n")[0].split()) in model_text("", LOGS[kind])


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-17 the lift stopped for the first time.",
        "2026-11-17 02:00 it stopped again with two people in it.",
        "At 02:00:07 it stopped again.",
        "17.11.2026 02:00 stuck\n17.11.2026 04:00 stuck again",
        "Nov 17 it stopped, Nov 18 it ran, Nov 19 it stopped.",
        "10:02 I pressed the button\n10:03 nothing happened\n10:05 I took the stairs",
        "Error: the display shows this word all day.",
        "ERROR on the display, and no bell.",
        "Warning: the door closes too fast.",
        "Info for your technician: the key is at the desk.",
        "at home (on the third floor) it is loud.",
        "at the motor (the old one) there is a smell.",
        "File under: complaints. Line 12 of the contract says so.",
        "#1 the bell is silent\n#2 the light is out",
        "The error is an Exception: it comes once a year.",
        "goroutine or not, the software of the lift is slow.",
        "Debug it, please: I cannot.",
    ],
)
def test_what_only_looks_like_a_machine(line: str) -> None:
    _stays(f"{OWN}\n{line}\n{MORE}")


def test_a_block_of_code_is_left_out() -> None:
    _is_own_and_more(f"{OWN}\n```python\nmotor.start(5)\nwait for the motor\n```\n{MORE}")
    _stays(f"{OWN}\n```\n{MORE}")
