"""Where chats begin: opening words, topics, and whole questions made of both. All written for this project.

The teacher writes on from an opening, its user's turn too. An opening that ends in a topic keeps the chats apart; one
without a topic lets the teacher choose. To add some: a line in a list here.
"""

import random
import re

TOPICS = """
a cat|a dog|a horse|a cow|a bird|an owl|a fish|a shark|a whale|a bear|a lion|an elephant|a monkey|a snake|a spider|a bee
an ant|a butterfly|a tree|a flower|a rose|grass|a forest|a river|a lake|the ocean|a mountain|a desert|an island|a cave
a volcano|rain|snow|ice|wind|a storm|lightning|a rainbow|clouds|fog|the sun|the moon|the stars|the planets|Mars|space
gravity|light|sound|heat|electricity|magnets|water|air|fire|oil|gold|iron|plastic|glass|paper|wood|cotton|stone|sand|salt
sugar|bread|rice|pasta|cheese|milk|eggs|butter|coffee|tea|chocolate|fruit|apples|bananas|oranges|potatoes|tomatoes
carrots|onions|soup|salad|pizza|a cake|cookies|breakfast|lunch|dinner|a recipe|cooking|baking|a kitchen|a knife|an oven
a garden|a farm|a house|a room|a bed|a chair|a table|a window|a door|a key|a lamp|a clock|a mirror|a phone|a computer
the internet|a website|a password|email|a robot|a camera|a television|music|a song|a guitar|a piano|a drum|singing|dancing
a movie|a book|a story|a poem|a library|reading|writing|drawing|painting|a museum|a game|chess|football|tennis|basketball
swimming|running|walking|hiking|cycling|a bicycle|a car|a bus|a train|a plane|a boat|a ship|a bridge|a road|a map|traffic
a city|a village|a country|Paris|London|New York|Japan|China|India|Africa|Europe|the United States|a king|a queen|history
a war|peace|a president|an election|a law|a judge|the police|a doctor|a nurse|a hospital|medicine|a cold|a headache|sleep
dreams|exercise|a healthy diet|stress|the heart|the brain|blood|bones|skin|the eyes|teeth|hair|a teacher|a student|a school
a class|homework|an exam|a university|a language|English|Spanish|a word|a sentence|mathematics|numbers|a circle|a triangle
adding two numbers|a percentage|science|physics|chemistry|biology|an experiment|a job|an interview|a meeting|a manager
a team|a company|a business|money|a bank|saving money|a budget|a price|a shop|a gift|a birthday|a wedding|a party|a holiday
Christmas|a family|a mother|a father|a baby|children|a friend|a neighbor|love|happiness|anger|fear|hope|trust|respect
honesty|kindness|patience|courage|luck|a mistake|a promise|a secret|a goal|a plan|time|the morning|the night|spring|summer
autumn|winter|a week|a year|the weather|a trip|a hotel|a ticket|a passport|a suitcase|the beach|a camp|a tent|a coat
shoes|a hat|a shirt|clothes|a bag|an umbrella|a box|a letter|a newspaper|the news|a photo|a color|red|blue|green|a number
a question|an idea|a problem|a rule|a habit|a hobby|a pet|a zoo|a park|a street|a fire station|a bakery|a restaurant
climate|pollution|recycling|energy|a battery|an engine|a machine|a tool|a hammer|a wheel|a rocket|a telescope|a microscope
a cell|a virus|bacteria|a vaccine|vitamins|protein|an allergy|a dentist|glasses|soap|a shower|cleaning|laundry|a plant
seeds|soil|a harvest|an insect|a frog|a turtle|a rabbit|a mouse|a chicken|a duck|a pig|a sheep|a wolf|a fox|a tiger
""".replace("\n", "|").strip("|").split("|")

SINGULARS = {"grass", "glass", "Mars", "Paris", "the United States", "chess", "tennis", "physics", "mathematics", "Christmas",
             "stress", "happiness", "kindness", "the news", "English", "Spanish"}
PLURALS = {t for t in TOPICS if t.endswith("s") and not t.startswith(("a ", "an ")) and t not in SINGULARS}
PLURALS |= {"bacteria", "children", "the police"}

# The rest of the turn is the teacher's.
OPENINGS = [
    "What", "What is", "What are", "What does", "What is the difference between", "What is a good way to", "What should I",
    "Why", "Why do", "Why is", "Why are", "How", "How do", "How does", "How can I", "How do I", "How many", "How long does",
    "Who", "Who is", "Who was", "Where", "Where can I", "Where is", "When", "When should I", "Which", "Can you", "Can I",
    "Can you explain", "Can you help me", "Could you", "Could you please", "Please", "Please explain", "Tell me", "Tell me about",
    "Explain", "Describe", "Give me", "Give me three", "Name", "List", "Suggest", "I need", "I want to", "I have", "I am",
    "I feel", "I think", "I would like to", "I'm looking for", "My friend", "My boss", "My child", "My", "We", "Hello", "Hello,",
    "Hi", "Hi there", "Good morning", "Good evening", "Thank you", "Help me", "Write a short", "Write a sentence", "Write a",
    "Write a short story about", "Write a poem about", "Write a polite email", "Write an email to", "Write a letter to",
    "Write a message to", "Rewrite", "Rewrite the following sentence:", "Make this sentence more polite:",
    "Correct this sentence:", "Summarize", "Summarize this text:", "Make a list of", "Come up with", "Complete the sentence:",
    "Answer with yes or no:", "Is", "Is it", "Is it true that", "Is there", "Are", "Are there", "Do", "Do you", "Do people",
    "Does", "Did", "Will", "Should", "Should I", "Would", "Has", "Have you", "Was", "Were", "True or false:",
]
# Yes-or-no questions about a topic, and others, left open.
TOPIC_OPENINGS = [
    "Is {}", "Can {}", "Does {}", "Will {}", "Should {}", "Is it true that {}", "Do you like {}", "Why is {}", "How does {}",
    "What makes {}", "How can {}", "Tell me something about {}", "What happens when {}", "I have a question about {}",
    "Write a short text about {}", "Give me some advice about {}", "Explain why {}", "What do you think about {}",
    "Is there a difference between {} and", "Write a sentence with the words {} and",
]
# Whole turns.
TOPIC_QUESTIONS = [
    "What is {}?", "Tell me about {}.", "Explain {} in simple words.", "Describe {} in one sentence.", "Why is {} important?",
    "What can you tell me about {}?", "Write a short story about {}.", "Write a short poem about {}.",
    "Give me three facts about {}.", "What is {} used for?", "What do people like about {}?",
    "Write one sentence about {}.", "How would you explain {} to a child?", "Do you know what {} is?",
    "Where can I find {}?", "Is {} good or bad?",
]
HELLOS = [
    "Hello!", "Hi!", "Hey!", "Good morning!", "Good evening!", "How are you?", "Hello, how are you today?", "Who are you?",
    "What can you do?", "Can you help me?", "Thank you!", "Thanks a lot!", "Nice to meet you.", "Goodbye!", "See you later!",
    "Tell me a joke.", "Tell me a story.", "I am bored.", "I am tired.", "I am sad today.", "I am happy today.",
    "What is your name?", "Are you a robot?", "What should I do today?", "I need your help.", "Hi, my name is Anna.",
]
USUAL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Short answers are most of what a small student can learn.
BRIEF = f"{USUAL}. You answer in one or two short and simple sentences."
# System prompts and their shares of the rows.
SYSTEMS = [(BRIEF, 0.7), (USUAL, 0.3)]
KINDS = [("opening", 0.40), ("topic_opening", 0.30), ("topic_question", 0.26), ("hello", 0.04)]


def about(template, topic):
    """The topic in its place, the verb in its number."""
    if topic not in PLURALS or "it true" in template or "there a" in template:
        return template.format(topic)
    for one, many in (("is", "are"), ("Is", "Are"), ("does", "do"), ("Does", "Do"), ("makes", "make")):
        template = re.sub(rf"\b{one}\b(?=[ \w]*\{{)", many, template)
    return re.sub(r"\{\} is\b", "{} are", template).format(topic)


def turn(rng):
    """The user's turn as far as it is given, and whether it ends there."""
    kind = rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
    if kind == "opening":
        return rng.choice(OPENINGS), False
    if kind == "topic_opening":
        return about(rng.choice(TOPIC_OPENINGS), rng.choice(TOPICS)), False
    if kind == "topic_question":
        return about(rng.choice(TOPIC_QUESTIONS), rng.choice(TOPICS)), True
    return rng.choice(HELLOS), True


def chat(rng):
    """What a chat begins with after its system prompt, and how many answers it is to have."""
    text, whole = turn(rng)
    begin = f"<|im_start|>user\n{text}"
    if whole:
        begin += "<|im_end|>\n<|im_start|>assistant\n"
    return begin, rng.choices([1, 2, 3], [0.7, 0.2, 0.1])[0]


def system(text):
    return f"<|im_start|>system\n{text}<|im_end|>\n"
